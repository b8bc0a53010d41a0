"""What a tokenizer is made from: a sample of the corpus for BPE, its alphabet for characters.

The sample is the beginning of the shuffled corpus, so it depends on data, seed and the plan of
portions, and on no order of arrival: any number of workers gives the same sample.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import Batch, concat
from pipeline.hashes import KEY_BYTES, key_halves, shuffle_hashes

PORTION_MARGIN = 2
"""Each portion may give this times its share of the sample: filters empty some portions."""

SAMPLE = pa.schema(
    [("hash", pa.uint64()), ("key", pa.binary(KEY_BYTES)), ("text", pa.large_binary())]
)

CHARACTERS = pa.schema([("text", pa.large_binary())])
MERGED_AT_ONCE = 1024
"""Portions, of a few KB each where there are many."""

Beginning = tuple[int, pa.RecordBatch]
"""Bytes of text to keep, and rows of `SAMPLE` in order that are the first of what was seen; of
characters 0, and one row of `CHARACTERS`."""


class Collector(ABC):
    """What a tokenizer is made from: of a batch, of several together, of the whole corpus."""

    @abstractmethod
    def of_batch(self, batch: Batch) -> Beginning:
        """What a batch with keys gives."""

    @abstractmethod
    def merge(self, parts: Iterable[Beginning]) -> Beginning:
        """What batches of one portion give together, in any order and grouping."""

    @abstractmethod
    def of_corpus(self, portions: Iterable[pa.RecordBatch]) -> Any:
        """What the rows of all portions give together; empty where there are no documents."""


@dataclass(frozen=True)
class SampleDocuments(Collector):
    """One list of texts of about `sample_bytes`, no text twice.

    Memory and transport are bounded by `PORTION_MARGIN` samples, however large the corpus is.
    """

    sample_bytes: int
    """Size of the sample, bytes of text; the last text may go past it."""
    portion_bytes: Callable[[int], int]
    """Size of a portion, by its index; a table of all would make the job grow with the corpus."""
    total_bytes: int
    """Size of all portions."""
    seed: int
    """The shuffle seed."""

    def of_batch(self, batch: Batch) -> Beginning:
        """The documents of a batch that may come into the sample."""
        size = self.portion_bytes(batch.portion)
        quota = portion_quota(size, total_bytes=self.total_bytes, sample_bytes=self.sample_bytes)
        return sample_batch(batch, quota, self.seed)

    def merge(self, parts: Iterable[Beginning]) -> Beginning:
        """The beginning of the union."""
        return merge_beginnings(parts)

    def of_corpus(self, portions: Iterable[pa.RecordBatch]) -> list[str]:
        """The sample."""
        held, left = merge_beginnings([]), iter(portions)
        while block := list(islice(left, MERGED_AT_ONCE)):
            held = merge_beginnings([held, *((self.sample_bytes, rows) for rows in block)])
        texts: list[str] = held[1].column("text").cast(pa.large_string()).to_pylist()
        return texts


@dataclass(frozen=True)
class CollectCharacters(Collector):
    """One string: the characters of all texts, sorted."""

    def of_batch(self, batch: Batch) -> Beginning:
        """Its characters."""
        return 0, _characters_row(batch_characters(batch))

    def merge(self, parts: Iterable[Beginning]) -> Beginning:
        """The characters of all parts."""
        return 0, _characters_row(self.of_corpus(rows for _, rows in parts))

    def of_corpus(self, portions: Iterable[pa.RecordBatch]) -> str:
        """The characters of all portions."""
        return unite_characters(rows.column("text")[0].as_py().decode() for rows in portions)


def portion_quota(portion_bytes: int, *, total_bytes: int, sample_bytes: int) -> int:
    """The most that a portion may give to the sample, bytes."""
    return math.ceil(PORTION_MARGIN * sample_bytes * portion_bytes / max(1, total_bytes))


def sample_batch(batch: Batch, quota: int, seed: int) -> Beginning:
    """The documents of a batch that may come into the sample, up to the quota of its portion."""
    keys = batch.documents.column("key")
    columns = [pa.array(shuffle_hashes(keys, seed)), keys, batch.documents.column("text")]
    rows = pa.RecordBatch.from_arrays(columns, schema=SAMPLE)
    return merge_beginnings([(quota, rows)])


def merge_beginnings(parts: Iterable[Beginning]) -> Beginning:
    """The beginning of the union: in the shuffle order, no key twice, up to the limit."""
    parts = list(parts)
    if not parts:
        return 0, pa.RecordBatch.from_pylist([], schema=SAMPLE)
    limit = max(limit for limit, _ in parts)
    rows = concat([rows for _, rows in parts])
    halves = key_halves(rows.column("key"))
    hashes = rows.column("hash").to_numpy()
    order = np.lexsort((halves[:, 1], halves[:, 0], hashes))
    new = np.ones(len(order), np.bool_)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    order = order[new]
    sizes = pc.binary_length(rows.column("text")).to_numpy()[order]
    before = np.cumsum(sizes) - sizes
    return limit, rows.take(pa.array(order[before < limit]))


def batch_characters(batch: Batch) -> str:
    """The characters of a batch, sorted."""
    text = b"".join(batch.documents.column("text").to_pylist()).decode("utf-8")
    seen = np.zeros(0x110000, np.bool_)
    seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))


def unite_characters(parts: Iterable[str]) -> str:
    """The characters of all parts, sorted."""
    return "".join(sorted(set().union(*parts)))


def _characters_row(characters: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"text": characters.encode()}], schema=CHARACTERS)
