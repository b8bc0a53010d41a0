"""From records to batches: what every reader of a corpus format ends with.

A reader turns its portion into records and bad records; `gather` makes them batches of about 4 MB,
of which the last one says so, even when it is empty.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import DOCUMENTS, EXCERPT_BYTES, REJECTS, Batch, Count, excerpt, text_bytes
from pipeline.byte_range import Line
from pipeline.corpus import Portion
from pipeline.meter import Meter
from pipeline.urls import escaped

STAGE = "read"

BATCH_BYTES = 4_000_000
"""Text in a batch. Large enough that the cost per batch of Beam and Arrow (about 1 ms) is below 2 %
at 100 MB/s, small enough that a portion of 64 MiB shows progress 16 times and a worker's memory
stays small."""

_REJECT_BYTES = 2 * EXCERPT_BYTES
"""What a reject adds to a batch, so that a file of rejects is held in bounded memory too."""


class Readable(Protocol):
    """A record that could be read, of whatever kind."""

    @property
    def size(self) -> int:
        """Bytes of its text, or image."""
        ...


class Record(NamedTuple):
    """A text that could be read."""

    position: int
    text: bytes

    @property
    def size(self) -> int:
        """Bytes of the text."""
        return len(self.text)


class BadRecord(NamedTuple):
    """A record that could not be read."""

    reason: str
    position: int
    detail: str
    size: int
    """Bytes of the whole record."""
    head: bytes
    """Its first bytes."""
    source: str = ""
    """Its file, where that is not the first one of the portion."""


def too_large(line: Line, *, what: str, max_bytes: int) -> BadRecord:
    """A record above the limit, of which only the head is held; `what` it is, as a block."""
    position, head, size = line
    detail = f"a {what} of {size} bytes; corpus.max_record_mib={max_bytes >> 20} allows {max_bytes}"
    return BadRecord("record_too_large", position, detail, size, head)


def text_documents(source: str, records: Sequence[Record]) -> pa.RecordBatch:
    """Rows of `DOCUMENTS` for texts of one file."""
    positions = np.fromiter((record.position for record in records), np.int64, len(records))
    texts = pa.array([record.text for record in records], pa.large_binary())
    return _text_rows(source, positions, texts)


def gather(
    portion: Portion,
    records: Iterable[Readable | BadRecord],
    meter: Meter | None = None,
    *,
    documents: Callable[[str, Any], pa.RecordBatch] = text_documents,
) -> Iterator[Batch]:
    """Batches of the records of a portion, in order; `meter` knows what was read for them.

    `documents` builds the rows from the portion's first source and the records of a batch.
    """
    meter = meter or Meter(portion.bytes)
    source = portion.file.source
    good: list[Readable] = []
    bad: list[BadRecord] = []
    size = 0
    for record in records:
        if isinstance(record, BadRecord):
            bad.append(record)
            size += _REJECT_BYTES
        else:
            good.append(record)
            size += record.size
        if size >= BATCH_BYTES:
            rows = documents(source, good)
            yield _batch(portion, rows, bad, read_bytes=meter.take(), last=False)
            good, bad, size = [], [], 0
    rows = documents(source, good)
    yield _batch(portion, rows, bad, read_bytes=meter.take(last=True), last=True)


def read_batch(
    portion: Portion,
    *,
    positions: npt.NDArray[np.int64],
    texts: pa.Array,
    bad: Sequence[BadRecord],
    read_bytes: int = 0,
    last: bool = False,
) -> Batch:
    """A batch fresh from its file; `texts` is a large_binary array."""
    rows = _text_rows(portion.file.source, positions, texts)
    return _batch(portion, rows, bad, read_bytes=read_bytes, last=last)


def _text_rows(source: str, positions: npt.NDArray[np.int64], texts: pa.Array) -> pa.RecordBatch:
    codes = pa.array(np.zeros(len(texts), np.int32))
    sources = pa.DictionaryArray.from_arrays(codes, pa.array([source], pa.string()))
    columns = [sources, pa.array(positions, pa.int64()), texts]
    return pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)


def _batch(
    portion: Portion,
    documents: pa.RecordBatch,
    bad: Sequence[BadRecord],
    *,
    read_bytes: int,
    last: bool,
) -> Batch:
    size, rows = text_bytes(documents), documents.num_rows
    records_in, bytes_in = rows + len(bad), size + sum(record.size for record in bad)
    entry = Count(STAGE, records_in, bytes_in, rows, size)
    rejects = _rejects(portion.file.source, bad)
    return Batch(portion.index, documents, rejects, (entry,), last, read_bytes)


def _rejects(source: str, bad: Sequence[BadRecord]) -> pa.RecordBatch:
    rows = [
        {
            "stage": STAGE,
            "reason": record.reason,
            "detail": escaped(record.detail),  # it may name a file
            "source": record.source or source,
            "position": record.position,
            "bytes": record.size,
            "excerpt": excerpt(record.head),
        }
        for record in bad
    ]
    return pa.RecordBatch.from_pylist(rows, schema=REJECTS)
