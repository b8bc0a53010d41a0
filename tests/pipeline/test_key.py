import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import DOCUMENTS, REJECTS, Batch, Count
from pipeline.key import KeyDocuments, add_keys, drop_copies, hash_texts


def batch_of(rows, portion=0):
    """A batch of (source, position, text)."""
    sources, positions, texts = zip(*rows, strict=True) if rows else ((), (), ())
    columns = [
        pa.array(sources, pa.string()).dictionary_encode(),
        pa.array(positions, pa.int64()),
        pa.array([text.encode() for text in texts], pa.large_binary()),
    ]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    return Batch(portion, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), True)


def test_key_is_the_xxh3_128_of_the_text_big_endian():
    keyed = add_keys(batch_of([("a.txt", 0, "naïve"), ("a.txt", 6, "")]))
    assert keyed.documents.schema.field("key").type == pa.binary(16)
    assert keyed.documents.column("key").to_pylist() == [
        xxhash.xxh3_128_intdigest("naïve".encode()).to_bytes(16, "big"),
        bytes.fromhex("99aa06d3014798d86001c324468d497f"),  # of nothing, as xxHash documents it
    ]


def test_keys_of_a_slice_and_of_nothing():
    documents = batch_of([("a", i, str(i) * i) for i in range(9)]).documents
    assert hash_texts(documents.slice(3, 4)) == hash_texts(documents)[3:7]
    assert hash_texts(documents.slice(9)) == []


def test_first_of_copies_stays_whatever_the_order():
    rows = [("b", 0, "same"), ("a", 9, "same"), ("a", 1, "other"), ("a", 5, "same")]
    result = drop_copies(add_keys(batch_of(rows)))
    kept = result.documents.select(["source", "position", "text"]).to_pylist()
    assert kept == [
        {"source": "a", "position": 1, "text": b"other"},
        {"source": "a", "position": 5, "text": b"same"},
    ]
    rejects = result.rejects.select(["stage", "reason", "detail", "source", "position"])
    assert [tuple(row.values()) for row in rejects.to_pylist()] == [
        ("deduplicate", "duplicate", "same text as a at 5", "b", 0),
        ("deduplicate", "duplicate", "same text as a at 5", "a", 9),
    ]
    assert result.counts == (Count("deduplicate", 4, 17, 2, 9),)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z", ""]))))
def test_each_text_stays_once_and_nothing_vanishes(origins):
    rows = [(source, i, text) for i, (source, text) in enumerate(origins)]
    result = drop_copies(add_keys(batch_of(rows)))
    kept = result.documents.to_pylist()
    expected = {text.encode(): min(row[:2] for row in rows if row[2] == text) for *_, text in rows}
    assert {row["text"]: (row["source"], row["position"]) for row in kept} == expected
    assert len(kept) == len(expected)
    assert len(kept) + result.rejects.num_rows == len(rows)


@pytest.mark.parametrize(("deduplicate", "positions"), [(True, [0, 2]), (False, [0, 1, 2])])
def test_stage(deduplicate, positions):
    batch = batch_of([("a", 0, "same"), ("a", 1, "same"), ("a", 2, "other")])
    [result] = [batch] | KeyDocuments(deduplicate=deduplicate)
    assert result.documents.column("position").to_pylist() == positions
    assert result.documents.column_names == ["source", "position", "text", "key"]
