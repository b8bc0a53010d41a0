"""Encoded documents on their way to shards: as rows in an engine's shuffle, in spill files locally.

A spill file is one Arrow record batch in the order of the shuffle hash, mapped into memory and cut
by binary search: a shard touches only its own pages.
"""

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batch import Batch
from pipeline.hashes import Hashes
from pipeline.machine import writing
from pipeline.sized_coder import knows_its_size

Row = tuple[Any, ...]
"""A document as plain values: of many shards each batch has about one document for each, which as a
record batch would be 890 bytes larger and take 0.25 ms of coding."""
ROWS_AT_ONCE = 1024

_HASH = pa.field("hash", pa.uint64())


@knows_its_size
class Documents(ABC):
    """The documents of a shard in pieces, read when they are asked for: not to be told a size."""

    nbytes = 0
    """Not known before they are read."""

    @abstractmethod
    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The pieces."""


@dataclass(frozen=True)
class ShuffledDocuments(Documents):
    """The documents of a shard as an engine's shuffle brings them."""

    rows: Iterable[Row]
    """Of them all, in any order."""
    schema: pa.Schema
    """Of encoded documents."""

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        schema, left = self.schema.insert(0, _HASH), iter(self.rows)
        while rows := list(islice(left, ROWS_AT_ONCE)):
            columns = zip(zip(*rows, strict=True), schema, strict=True)
            arrays = [pa.array(cells, field.type) for cells, field in columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class SpilledDocuments(Documents):
    """The documents of a range of partitions, from the spill files."""

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
    """The encoded documents of a batch behind a column `hash`, their place in the shuffle order."""
    columns = [pa.array(hashes), *batch.documents.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.documents.schema.insert(0, _HASH))


def as_rows(placed: pa.RecordBatch) -> Iterator[Row]:
    """Placed documents as rows."""
    return zip(*(column.to_pylist() for column in placed.columns), strict=True)


def write_spill(path: Path, documents: pa.RecordBatch) -> None:
    """Write documents in shuffle order, complete or not at all."""
    order = np.argsort(np.asarray(documents.column("hash")), kind="stable")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path, temporary):
        with (
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, documents.schema) as writer,
        ):
            writer.write_batch(documents.take(pa.array(order)))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


def _read_range(path: Path, wanted: SpilledDocuments) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as file:
        documents = pa.ipc.open_file(file).get_batch(0)
    hashes = np.asarray(documents.column("hash")) >> np.uint64(64 - wanted.partition_bits)
    begin, end = np.searchsorted(hashes, np.array([wanted.first, wanted.stop], np.uint64))
    return documents.slice(int(begin), int(end - begin))
