import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import DOCUMENTS, REJECTS, Batch
from pipeline.hashes import split_hashes
from pipeline.images.rows import ImageRecord, image_documents
from pipeline.split import (
    Candidates,
    MarkValidation,
    SplitConfig,
    carry_mark,
    documents_threshold,
    fraction_threshold,
    mark_validation,
    merge_candidates,
    no_candidates,
    validation_mask,
)

ROWS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=30)


def keyed(keys):
    return pa.RecordBatch.from_arrays([keys], names=["key"])


def places(documents, *paths):
    """Which documents the paths mark; the mark itself decides then, whatever the hash says."""
    batch = Batch(0, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), True)
    marked = mark_validation(batch, paths).documents
    assert marked.column_names == [*documents.schema.names, "validation"]
    mask = validation_mask(marked, seed=0, threshold=2**64 - 1)
    assert mask.tolist() == marked.column("validation").to_pylist()
    assert carry_mark(marked, documents).equals(marked)
    return mask.tolist()


def candidates(rows):
    hashes, tokens = zip(*rows, strict=True) if rows else ((), ())
    hashes = np.array(hashes, np.uint64)
    return Candidates(hashes, (hashes % 7).astype(np.int64), np.array(tokens, np.int64))


@given(ROWS, ROWS, st.integers(1, 10))
def test_merged_candidates_are_the_smallest_with_summed_tokens(left, right, limit):
    merged = merge_candidates(candidates(left), candidates(right), limit)
    sums = {}
    for value, tokens in [*left, *right]:
        sums[value] = sums.get(value, 0) + tokens
    expected = sorted(sums.items())[:limit]
    assert list(zip(merged.split_hash, merged.weight, strict=True)) == expected
    assert merged.partition.tolist() == [value % 7 for value, _ in expected]


@given(st.lists(ROWS, max_size=4), st.integers(1, 10))
def test_merging_portions_in_any_order_is_the_same(portions, limit):
    def merge(parts):
        merged = no_candidates()
        for rows in parts:
            merged = merge_candidates(merged, candidates(rows), limit)
        return merged

    one, other = merge(portions), merge(portions[::-1])
    assert one.split_hash.tolist() == other.split_hash.tolist()
    assert one.weight.tolist() == other.weight.tolist()


@pytest.mark.parametrize("documents", [1, 17, 1000])
def test_a_number_of_documents_is_exact(documents):
    keys = pa.array([i.to_bytes(16, "big") for i in range(1000)] * 2, pa.binary(16))
    hashes = split_hashes(keys, 3)
    zeros = np.zeros(len(hashes), np.int64)
    found = merge_candidates(no_candidates(), Candidates(hashes, zeros, zeros), documents)
    mask = validation_mask(keyed(keys), seed=3, threshold=documents_threshold(found, documents))
    assert mask[:1000].sum() == documents
    assert (mask[:1000] == mask[1000:]).all()


def test_more_documents_than_there_are():
    assert documents_threshold(candidates([(5, 1)]), 10) == 6
    assert documents_threshold(no_candidates(), 10) == 0


def test_fractions():
    keys = pa.array([i.to_bytes(16, "big") for i in range(10_000)], pa.binary(16))
    shares = [
        validation_mask(keyed(keys), seed=0, threshold=fraction_threshold(fraction)).mean()
        for fraction in (0.0, 0.1, 0.5)
    ]
    assert shares[0] == 0
    assert abs(shares[1] - 0.1) < 0.015  # five standard deviations
    assert abs(shares[2] - 0.5) < 0.025


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["test.tar/*"], [True, True, False, False, False]),
        (["*/test/*"], [True, False, True, False, False]),
        (["*.tar/test/?.jpg", "val/*"], [True, False, True, False, True]),
        (["VAL/*", "test.tar", "test"], [False] * 5),
    ],
)
def test_images_are_marked_by_file_and_name(paths, expected):
    records = [
        ImageRecord("test.tar", 0, b"", name="test/1.jpg"),
        ImageRecord("test.tar", 1, b"", name="2.jpg"),
        ImageRecord("a.tar", 0, b"", name="test/1.jpg"),
        ImageRecord("a.tar", 1, b"", name="train/1.jpg"),
        ImageRecord("val/cat/1.jpg", 0, b""),
    ]
    assert places(image_documents("", records), *paths) == expected
    assert places(image_documents("", records[:0]), *paths) == []


def test_texts_are_marked_by_file():
    sources = pa.array(["a.txt", "val/b.txt", "a.txt"]).dictionary_encode()
    columns = [sources, pa.array([0, 1, 2]), pa.array([b"x"] * 3, pa.large_binary())]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    assert places(documents, "val/*") == [False, True, False]
    assert places(documents.slice(0, 0), "val/*") == []


@pytest.mark.parametrize("paths", [(), ("a",)])
def test_without_paths_nothing_is_marked(paths):
    documents = pa.RecordBatch.from_pylist([], schema=DOCUMENTS)
    batch = Batch(0, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), True)
    [passed] = [batch] | MarkValidation(paths)
    assert ("validation" in passed.documents.schema.names) == bool(paths)
    assert carry_mark(documents, documents) is documents


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.0}, "fraction 1.0: at least 0 and less than 1"),
        ({"fraction": -0.1}, "fraction -0.1"),
        ({"documents": 0}, "documents 0: 1 to 1000000"),
        ({"documents": 1, "validation_paths": ("a",)}, "validation_paths: .*only one of the three"),
        (
            {"fraction": 0.1, "validation_paths": ("a",)},
            "validation_paths: .*only one of the three",
        ),
        ({"validation_paths": ("a", "")}, "validation_paths: holds an empty glob"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)
