"""Encoded documents on their way to shards, and the sorted spill files that hold them locally.

A spill file is one Arrow record batch in the order of the shuffle hash, mapped into memory and cut
by binary search: a shard touches only its own pages.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.batch import Batch
from pipeline.hashes import Hashes

PLACED = pa.schema(
    [
        ("hash", pa.uint64()),  # place in the shuffle order
        ("key", pa.binary(16)),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("text_bytes", pa.int64()),
        ("tokens", pa.large_binary()),  # of the dataset's token type: sorted 10 times faster so
    ]
)


@dataclass(frozen=True, slots=True)
class SpilledDocuments:
    """The documents of a range of partitions, read from the spill files when they are asked for."""

    folder: str
    """Where the spill files lie."""
    spills: tuple[str, ...]
    """Names of all of them."""
    partition_bits: int
    """The partition is so many leading bits of the hash."""
    first: int
    """First partition."""
    stop: int
    """Behind the last partition."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for name in self.spills:
            yield _read_range(Path(self.folder) / name, self)


def placed_documents(batch: Batch, hashes: Hashes) -> pa.RecordBatch:
    """The documents of a batch as rows of `PLACED`."""
    documents = batch.documents
    columns = [
        pa.array(hashes),
        documents.column("key"),
        documents.column("source").cast(pa.string()),
        documents.column("position"),
        documents.column("text_bytes"),
        _as_bytes(documents.column("tokens")),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PLACED)


def write_spill(path: Path, documents: pa.RecordBatch) -> None:
    """Write documents in shuffle order, complete or not at all."""
    order = np.argsort(np.asarray(documents.column("hash")), kind="stable")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, PLACED) as writer:
            writer.write_batch(documents.take(pa.array(order)))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # on a full disk it takes the room that others need


def _read_range(path: Path, wanted: SpilledDocuments) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as file:
        documents = pa.ipc.open_file(file).get_batch(0)
    hashes = np.asarray(documents.column("hash")) >> np.uint64(64 - wanted.partition_bits)
    begin, end = np.searchsorted(hashes, np.array([wanted.first, wanted.stop], np.uint64))
    return documents.slice(int(begin), int(end - begin))


def _as_bytes(tokens: pa.LargeListArray) -> pa.LargeBinaryArray:
    """Each document's tokens as one binary value, without a copy."""
    values = np.asarray(tokens.values)
    offsets = np.asarray(tokens.offsets) * values.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(tokens), buffers)
