"""Train or validation: decided by a seeded hash of the document's key, so duplicates agree.

A document belongs to validation if its split hash lies below a threshold: a fraction of the hash
range, or what the wished number of distinct documents takes. Where the corpus is divided already,
the place of a record in it decides, and what validation has, training loses.
"""

import fnmatch
import re
from dataclasses import dataclass, replace

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import Batch
from pipeline.hashes import Hashes, split_hashes

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)

MARK = "validation"
"""Column of documents that is there where their place in the corpus decides."""


@dataclass(frozen=True)
class SplitConfig:
    """How many documents are kept from training for validation."""

    fraction: float = 0.01
    """Share of the documents that goes to validation; 0 for none."""
    documents: int | None = None
    """Exact number of distinct documents for validation; takes the place of `fraction`."""
    validation_paths: tuple[str, ...] = ()
    """Globs of the records that validate, all others train; in the place of `fraction`. Matched
    with the name of the corpus file, behind it that of the image in it: `data.tar/test/1.jpg`; `*`
    matches `/` too. A document of both splits is kept in validation alone."""
    seed: int = 0
    """Another seed chooses other documents."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction {self.fraction}: at least 0 and less than 1 are allowed")
        if self.documents is not None and not 0 < self.documents <= 1_000_000:
            # each portion's record holds as many candidates
            raise ValueError(f"documents {self.documents}: 1 to 1000000 are allowed")
        other = self.documents is not None or self.fraction != SplitConfig.fraction
        if self.validation_paths and other:
            raise ValueError(
                "validation_paths: names what validates, as fraction and documents do; only one of "
                "the three is allowed"
            )
        if "" in self.validation_paths:
            raise ValueError("validation_paths: holds an empty glob, which matches nothing")


@dataclass
class MarkValidation(beam.PTransform):  # type: ignore[misc]
    """Batches as they were read -> with a column `MARK`, if the place of records decides."""

    paths: tuple[str, ...]
    """Globs of the records that validate."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        if not self.paths:
            return batches
        mark = beam.Map(mark_validation, self.paths).with_output_types(Batch)
        return batches | "MarkValidation" >> mark


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents of smallest split hash, from which an exact number is chosen; as columns."""

    split_hash: Hashes
    """Distinct, ascending."""
    partition: npt.NDArray[np.int64]
    """Hash partition of the shuffle order that the document lies in."""
    weight: npt.NDArray[np.int64]
    """Of all documents of this hash: tokens of text."""


def validation_mask(
    documents: pa.RecordBatch, *, seed: int, threshold: int
) -> npt.NDArray[np.bool_]:
    """Which of the documents, with keys, belong to validation: marked ones, or by their hash."""
    if MARK in documents.schema.names:
        return np.asarray(documents.column(MARK).to_numpy(zero_copy_only=False), np.bool_)
    return np.asarray(split_hashes(documents.column("key"), seed) < np.uint64(threshold))


def mark_validation(batch: Batch, paths: tuple[str, ...]) -> Batch:
    """The batch with the column `MARK` behind the others.

    A record's place is its `source`, and behind it its `name` where the file gives it one.
    """
    documents = batch.documents
    wanted = re.compile("|".join(map(fnmatch.translate, paths))).match
    if "name" in documents.schema.names:
        sources = documents.column("source").cast(pa.string()).to_pylist()
        names = documents.column("name").to_pylist()
        places = [
            source if name is None else f"{source}/{name}"
            for source, name in zip(sources, names, strict=True)
        ]
        mask = pa.array([wanted(place) is not None for place in places], pa.bool_())
    else:
        sources = documents.column("source")
        known = pa.array([wanted(one) is not None for one in sources.dictionary.to_pylist()])
        mask = known.cast(pa.bool_()).take(sources.indices)
    return replace(batch, documents=documents.append_column(MARK, mask))


def marked_schema(schema: pa.Schema, paths: tuple[str, ...]) -> pa.Schema:
    """The schema of rows that `carry_mark` makes, by the globs of the split."""
    return schema.append(pa.field(MARK, pa.bool_())) if paths else schema


def carry_mark(documents: pa.RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows made of documents, with their mark where they have one."""
    if MARK not in documents.schema.names:
        return rows
    return rows.append_column(MARK, documents.column(MARK))


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
