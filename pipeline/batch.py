"""The element of the text pipeline: a few MB of documents as Arrow, with the rejects and counts of its past.

A stage maps a batch to a batch. A document that a stage does not pass on moves to the batch's rejects with the
stage and the reason, so that documents plus rejects is constant along the chain and nothing vanishes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

EXCERPT_BYTES = 500
"""Of each reject's text so much is kept to recognise it by."""

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
        ("bytes", pa.int64()),  # of the record's text
        ("excerpt", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Count:
    """What one stage did: records and bytes of text in and out."""

    stage: str
    records_in: int
    bytes_in: int
    records_out: int
    bytes_out: int


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


def text_bytes(documents: pa.RecordBatch) -> int:
    """Bytes of text in the documents."""
    column = documents.column("text")
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    return int(offsets[column.offset + len(column)] - offsets[column.offset])


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
    lengths = [len(text.as_buffer()) for text in documents.column("text")]
    excerpts = [
        bytes(text.as_buffer()[:EXCERPT_BYTES]).decode("utf-8", "replace")
        for text in documents.column("text")
    ]
    columns = [
        pa.array([stage] * documents.num_rows, pa.string()),
        pa.array(reasons, pa.string()),
        pa.array(details, pa.string()),
        documents.column("source").cast(pa.string()),
        documents.column("position"),
        pa.array(lengths, pa.int64()),
        pa.array(excerpts, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTS)


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
    kept = batch.documents.filter(pa.array(keep))
    denied = batch.documents.filter(pa.array(~keep))
    details = details if details is not None else [""] * denied.num_rows
    rejects = concat([batch.rejects, reject(denied, stage, reasons, details)])
    return replace(count(batch, stage, kept), rejects=rejects)


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Record batches of one schema as one."""
    filled = [batch for batch in batches if batch.num_rows] or list(batches[:1])
    return filled[0] if len(filled) == 1 else pa.concat_batches(filled)
