"""Train or validation: decided by a seeded hash of the document's key, so duplicates agree.

A document belongs to validation if its split hash lies below a threshold: a fraction of the hash
range, or what the wished number of distinct documents takes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.hashes import Hashes, split_hashes

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True)
class SplitConfig:
    """How many documents are kept from training for validation."""

    fraction: float = 0.01
    """Share of the documents that goes to validation; 0 for none."""
    documents: int | None = None
    """Exact number of distinct documents for validation; takes the place of `fraction`."""
    seed: int = 0
    """Another seed chooses other documents."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction {self.fraction}: at least 0 and less than 1 are allowed")
        if self.documents is not None and not 0 < self.documents <= 1_000_000:
            # each portion's record holds as many candidates
            raise ValueError(f"documents {self.documents}: 1 to 1000000 are allowed")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents of smallest split hash, from which an exact number is chosen; as columns."""

    split_hash: Hashes
    """Distinct, ascending."""
    partition: npt.NDArray[np.int64]
    """Hash partition of the shuffle order that the document lies in."""
    weight: npt.NDArray[np.int64]
    """Of all documents of this hash: tokens of text."""


def validation_mask(keys: pa.Array, *, seed: int, threshold: int) -> npt.NDArray[np.bool_]:
    """Which of the documents belong to validation."""
    return np.asarray(split_hashes(keys, seed) < np.uint64(threshold))


def fraction_threshold(fraction: float) -> int:
    """The threshold that takes a fraction of all hashes."""
    return int(fraction * 2**64)


def documents_threshold(candidates: Candidates, documents: int) -> int:
    """The threshold that takes exactly this many distinct documents, or all if there are fewer."""
    chosen = candidates.split_hash[:documents]
    return min(int(chosen[-1]) + 1, 2**64 - 1) if len(chosen) else 0


def no_candidates() -> Candidates:
    """The candidates of no documents."""
    return Candidates(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))


def merge_candidates(left: Candidates, right: Candidates, limit: int) -> Candidates:
    """The `limit` candidates of smallest hash of both; the weights of equal hashes add up."""
    hashes = np.concatenate([left.split_hash, right.split_hash])
    partitions = np.concatenate([left.partition, right.partition])
    weight = np.concatenate([left.weight, right.weight])
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, inverse, weight)
    return Candidates(distinct[:limit], partitions[first][:limit], sums[:limit])
