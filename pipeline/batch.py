"""The element of the text pipeline: a few MB of documents as Arrow, their rejects and counts.

A stage maps a batch to a batch. A document that a stage does not pass on moves to the batch's
rejects with the stage and the reason, so documents plus rejects is constant along the chain and
nothing vanishes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.sized_coder import knows_its_size

EXCERPT_BYTES = 500
"""Of each reject's text so much is kept to recognise it by."""

UNREADABLE = frozenset(
    {
        "damaged_image",
        "decoder_crashed",
        "duplicate_key",
        "empty_file",
        "forbidden_path",
        "incomplete_sample",
        "invalid_csv",
        "invalid_json",
        "invalid_utf8",
        "missing_caption",
        "missing_class",
        "missing_column",
        "missing_file",
        "missing_image",
        "missing_value",
        "not_an_image",
        "not_text",
        "out_of_memory",
        "several_images",
        "too_slow",
        "truncated_file",
        "truncated_image",
        "unknown_format",
        "unreadable_file",
    }
)
"""Reasons that tell of damaged input; `max_bad_fraction` limits their share of all records."""

DOCUMENTS = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),  # corpus file, relative to its root
        ("position", pa.int64()),  # of the record in its file: byte offset, or row number
        ("text", pa.large_binary()),  # raw bytes behind the reader, valid UTF-8 behind normalise
    ]
)
REJECTS = pa.schema(
    [
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),  # what was found, where the reason alone does not tell
        ("source", pa.string()),
        ("position", pa.int64()),
        ("bytes", pa.int64()),  # of the record's text; of `UNREADABLE_FILES`, what was lost
        ("excerpt", pa.string()),
    ]
)


ENCODED = pa.schema(
    [
        ("source", pa.string()),
        ("position", pa.int64()),
        ("key", pa.binary(16)),
        ("bytes", pa.int64()),  # of the content behind the filters
        ("weight", pa.int64()),  # what a shard is filled by: tokens
        ("payload", pa.large_binary()),  # what goes into the shard: tokens in the dataset's type
    ]
)
"""What the last stage before the shuffle makes of documents, whatever kind they are of."""

UNREADABLE_FILES = frozenset({"truncated_file", "unreadable_file"})
"""Of them, those that stand for any number of records; their bytes are what was lost, as stored."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one stage did: records and bytes of text in and out."""

    stage: str
    records_in: int
    bytes_in: int
    records_out: int
    bytes_out: int


@knows_its_size
@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive documents of one portion of the corpus."""

    portion: int
    """Index of the portion in the plan of the corpus."""
    documents: pa.RecordBatch
    """Documents that are still in; columns of `DOCUMENTS` first, a stage may add its own."""
    rejects: pa.RecordBatch
    """Documents that are out, with the stage and the reason; columns of `REJECTS`."""
    counts: tuple[Count, ...]
    """One per stage passed, in order."""
    last: bool
    """No batch of this portion follows."""
    read_bytes: int = 0
    """Stored bytes that were read for it, for progress: over a portion they add up to its size."""
    sketches: pa.RecordBatch | None = None
    """Behind the last stage, where documents are compared over the whole corpus: what this takes, a
    row for each, with columns `key` and `weight`."""

    @property
    def nbytes(self) -> int:
        """Of the documents, about what they take between stages."""
        return int(self.documents.nbytes)


def text_bytes(documents: pa.RecordBatch) -> int:
    """Bytes of text in the documents."""
    offsets, _ = text_buffers(documents)
    return int(offsets[-1] - offsets[0])


def text_buffers(documents: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The text, or the images, without a copy: n + 1 offsets and the bytes they point into."""
    column = documents.column("text" if "text" in documents.schema.names else "image")
    _, offsets, values = column.buffers()
    # Without a document the offsets may be absent, without text the bytes.
    ends = np.frombuffer(offsets if len(column) else bytes(8), np.int64)
    text = np.frombuffer(values if values is not None else b"", np.uint8)
    first = column.offset if len(column) else 0
    ends = ends[first : first + len(column) + 1]
    # Some buffers of Arrow say that they are writable; a compiled kernel would take that for a
    # second type of argument, and be compiled twice.
    ends.flags.writeable = text.flags.writeable = False
    return ends, text


def encoded_rows(
    documents: pa.RecordBatch,
    *,
    payload: pa.LargeBinaryArray,
    weight: npt.NDArray[np.int64],
    size: npt.NDArray[np.int64],
) -> pa.RecordBatch:
    """Rows of `ENCODED` for documents with keys."""
    columns = [
        documents.column("source").cast(pa.string()),
        documents.column("position"),
        documents.column("key"),
        pa.array(size, pa.int64()),
        pa.array(weight, pa.int64()),
        payload,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ENCODED)


def count(batch: Batch, stage: str, documents: pa.RecordBatch) -> Batch:
    """The batch with `documents` as what `stage` made of it, all of them still in."""
    entry = Count(
        stage,
        batch.documents.num_rows,
        text_bytes(batch.documents),
        documents.num_rows,
        text_bytes(documents),
    )
    return replace(batch, documents=documents, counts=(*batch.counts, entry))


def reject(
    documents: pa.RecordBatch, stage: str, reasons: Sequence[str], details: Sequence[str]
) -> pa.RecordBatch:
    """Rows of `REJECTS` for these documents, a reason and a detail for each."""
    offsets, values = text_buffers(documents)
    starts, lengths = offsets[:-1], np.diff(offsets)
    stops = starts + np.minimum(lengths, EXCERPT_BYTES)
    columns = [
        pa.array([stage] * documents.num_rows, pa.string()),
        pa.array(reasons, pa.string()),
        pa.array(details, pa.string()),
        documents.column("source").cast(pa.string()),
        documents.column("position"),
        pa.array(lengths, pa.int64()),
        pa.array(
            [excerpt(values[a:b].tobytes()) for a, b in zip(starts, stops, strict=True)],
            pa.string(),
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTS)


def excerpt(text: bytes) -> str:
    """The first bytes of a text, to recognise a reject by."""
    return text[:EXCERPT_BYTES].decode("utf-8", "replace")


def split_off(
    batch: Batch,
    stage: str,
    keep: npt.NDArray[np.bool_],
    reasons: Sequence[str],
    details: Sequence[str] | None = None,
) -> Batch:
    """The batch with the documents that `keep` denies moved to the rejects.

    `reasons` and `details` have one entry for each denied document, in order.
    """
    if keep.all():
        return count(batch, stage, batch.documents)
    kept = batch.documents.filter(pa.array(keep))
    denied = batch.documents.filter(pa.array(~keep))
    details = details if details is not None else [""] * denied.num_rows
    rejects = concat([batch.rejects, reject(denied, stage, reasons, details)])
    return replace(count(batch, stage, kept), rejects=rejects)


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Record batches of one schema as one."""
    filled = [batch for batch in batches if batch.num_rows] or list(batches[:1])
    return filled[0] if len(filled) == 1 else pa.concat_batches(filled)
