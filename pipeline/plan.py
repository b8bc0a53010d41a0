"""The shard plan: which range of hash partitions becomes which shard, from summed histograms.

A partition is a range of the shuffle order's 64-bit hashes. The plan is a function of the
histograms alone, so every runner and any number of workers make the same one. It grows with the
corpus, so that it lies in a file of the work folder, and Beam carries its place.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.shared_work import read_place
from pipeline.split import SPLITS
from pipeline.work import write_atomic

Histogram = npt.NDArray[np.int64]
"""(2, partitions): weight of train and of validation in each partition; tokens of text."""

MIN_PARTITION_BITS, MAX_PARTITION_BITS = 12, 16
PARTITIONS_PER_SHARD = 64
"""Shards differ from the target by half a partition at most, about one percent."""


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard: the documents of `split` whose partition is in [first, stop)."""

    name: str
    """Without the ending, as train-000000."""
    split: str
    """Train or validation."""
    first: int
    """First hash partition."""
    stop: int
    """Behind the last hash partition."""
    weight: int
    """Before duplicates are dropped: tokens of text."""
    split_threshold: int
    """Split hashes below it belong to validation."""
    fingerprint: str
    """Of everything that decides the shard's bytes."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All shards of a dataset."""

    partition_bits: int
    """The partition is so many leading bits of the shuffle hash."""
    split_threshold: int
    """Split hashes below it belong to validation."""
    shards: tuple[PlannedShard, ...]
    """Train first, each split in order."""
    spills: tuple[str, ...] = ()
    """Names of all spill files, on the local runner."""


def write_plan(plan: ShardPlan, folder: Path) -> Path:
    """Write a plan into a file of the folder that is named by its content."""
    content = json.dumps(asdict(plan)).encode()
    path = folder / f"plan-{hashlib.sha256(content).hexdigest()[:16]}.json"
    write_atomic(path, content)
    return path


@lru_cache(maxsize=2)
def read_plan(place: str) -> ShardPlan:
    """The plan of a file; a worker process reads it once."""
    tree = json.loads(read_place(place))
    shards = tuple(PlannedShard(**shard) for shard in tree["shards"])
    return ShardPlan(**{**tree, "shards": shards, "spills": tuple(tree["spills"])})


def partition_bits(corpus_bytes: int, target_bytes: int) -> int:
    """How finely the hash range is divided, for a corpus and a size of shards."""
    wished = (corpus_bytes // max(target_bytes, 1) + 1) * PARTITIONS_PER_SHARD
    return min(max(wished.bit_length(), MIN_PARTITION_BITS), MAX_PARTITION_BITS)


def partitions(hashes: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.int64]:
    """The partition that each shuffle hash lies in."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64)


def filled_cells(
    histogram: Histogram,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """What of a histogram is not 0: flat indices and weights; a portion fills few of 2 x 65,536."""
    flat = histogram.reshape(-1)
    filled = np.flatnonzero(flat).astype(np.int32)
    return filled, flat[filled]


def whole_histogram(
    filled: npt.NDArray[np.int32], weights: npt.NDArray[np.int64], bits: int
) -> Histogram:
    """The histogram that has these cells."""
    flat = np.zeros(2 * 2**bits, np.int64)
    flat[filled] = weights
    return flat.reshape(2, -1)


def plan_shards(
    histogram: Histogram,
    *,
    split_threshold: int,
    target_weight: int,
    fingerprint: str,
    spills: tuple[str, ...] = (),
) -> ShardPlan:
    """Cut both splits into shards of about `target_weight`, none of them empty."""
    shards = [
        PlannedShard(
            name=f"{split}-{index:06d}",
            split=split,
            first=first,
            stop=stop,
            weight=int(counts[first:stop].sum()),
            split_threshold=split_threshold,
            fingerprint=fingerprint,
        )
        for split, counts in zip(SPLITS, histogram, strict=True)
        for index, (first, stop) in enumerate(_cut(counts, target_weight))
    ]
    bits = int(histogram.shape[1]).bit_length() - 1
    return ShardPlan(bits, split_threshold, tuple(shards), spills)


def _cut(counts: npt.NDArray[np.int64], target_weight: int) -> list[tuple[int, int]]:
    """Equal shares of the weight; a filled partition goes where its middle lies."""
    filled = np.flatnonzero(counts)
    total = int(counts.sum())
    num_shards = max(1, round(total / target_weight))
    middle = np.cumsum(counts[filled]) - counts[filled] // 2 - 1
    owner = middle * num_shards // max(total, 1)
    bounds = np.flatnonzero(np.diff(owner, prepend=-1))
    edges = [*filled[bounds].tolist(), len(counts)]
    if len(filled):
        edges[0] = 0
    return list(zip(edges, edges[1:], strict=False))
