"""Documents move between the columns of a batch, and their sum stays."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import (
    DOCUMENTS,
    EXCERPT_BYTES,
    REJECTS,
    Batch,
    Count,
    concat,
    count,
    reject,
    split_off,
    text_buffers,
    text_bytes,
)


def _batch(*texts: bytes) -> Batch:
    source = pa.array(["a.txt"] * len(texts), pa.string()).dictionary_encode()
    positions = pa.array(range(len(texts)), pa.int64())
    columns = [source, positions, pa.array(texts, pa.large_binary())]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    return Batch(0, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), last=False)


def test_text_buffers_of_a_slice():
    documents = _batch(b"one", b"", b"three", b"four").documents.slice(1, 2)
    offsets, values = text_buffers(documents)
    assert [values[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False)] == [
        b"",
        b"three",
    ]
    assert text_bytes(documents) == 5


def test_no_documents():
    documents = _batch().documents
    assert [array.tolist() for array in text_buffers(documents)] == [[0], []]
    assert text_bytes(documents) == 0


def test_count_adds_an_entry():
    batch = count(_batch(b"one", b"two"), "shorten", _batch(b"on").documents)
    batch = count(batch, "again", batch.documents)
    assert batch.counts == (Count("shorten", 2, 6, 1, 2), Count("again", 1, 2, 1, 2))
    assert batch.documents.column("text").to_pylist() == [b"on"]


def test_reject_keeps_an_excerpt_of_the_text():
    long = b"x" * (EXCERPT_BYTES - 1) + "ä".encode() + b"y"
    rows = reject(_batch(b"\xff", long).documents, "read", ["bad", "long"], ["", "why"]).to_pylist()
    assert rows == [
        {
            "stage": "read",
            "reason": "bad",
            "detail": "",
            "source": "a.txt",
            "position": 0,
            "bytes": 1,
            "excerpt": "\ufffd",
        },
        {
            "stage": "read",
            "reason": "long",
            "detail": "why",
            "source": "a.txt",
            "position": 1,
            "bytes": EXCERPT_BYTES + 2,
            "excerpt": "x" * (EXCERPT_BYTES - 1) + "\ufffd",
        },
    ]


@given(st.lists(st.tuples(st.binary(max_size=5), st.booleans()), max_size=9))
def test_split_off_moves_each_denied_document(rows):
    texts = [text for text, _ in rows]
    keep = np.array([kept for _, kept in rows], np.bool_)
    denied = [index for index, kept in enumerate(keep) if not kept]
    before = split_off(_batch(*texts), "first", np.ones(len(texts), np.bool_), [])
    batch = split_off(before, "second", keep, [f"r{index}" for index in denied])
    kept = [index for index in range(len(texts)) if index not in denied]
    assert batch.documents.column("position").to_pylist() == kept
    assert batch.documents.schema == DOCUMENTS
    assert batch.rejects.column("position").to_pylist() == denied
    assert batch.rejects.column("reason").to_pylist() == [f"r{index}" for index in denied]
    size = sum(map(len, texts))
    kept_size = sum(len(texts[index]) for index in kept)
    assert batch.counts == (
        Count("first", len(texts), size, len(texts), size),
        Count("second", len(texts), size, len(kept), kept_size),
    )


def test_concat_of_rejects_keeps_order_and_skips_empty_ones():
    none = _batch().documents
    parts = [_batch(b"a").documents, none, _batch(b"b", b"c").documents]
    assert concat(parts).column("text").to_pylist() == [b"a", b"b", b"c"]
    assert concat([none, none]).equals(none)
