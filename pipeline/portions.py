"""What the build keeps of each portion: its completion record.

The record sums what the plan of the shards, the report and a rerun need, so that documents never
have to be read for it. A sum does not depend on the order of batches.
"""

import base64
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import batch as batches
from pipeline.batch import Batch, Count
from pipeline.exclude import Excluded, read_table, write_table
from pipeline.hashes import Hashes, shuffle_hashes, split_hashes
from pipeline.plan import Histogram, filled_cells, partitions, whole_histogram
from pipeline.rejects import RejectPieces, Tally, tally_from_row, tally_row
from pipeline.split import (
    MARK,
    Candidates,
    SplitConfig,
    fraction_threshold,
    merge_candidates,
    no_candidates,
    validation_mask,
)
from pipeline.work import WorkFolder, read_json, write_json


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides the place of a document: plain numbers that travel to Beam workers."""

    shuffle_seed: int
    """Of the global order."""
    partition_bits: int
    """The hash range is divided into 2 ** bits partitions."""
    split_seed: int
    """Of the split."""
    fraction: float
    """Share of validation; 0 where a number of documents is wished."""
    documents: int
    """Exact number of validation documents; 0 where a fraction is wished."""


@dataclass(frozen=True, slots=True)
class PortionRecord:
    """The completion record of one portion."""

    portion: int
    """Index in the plan of the corpus."""
    fingerprint: str
    """Of everything that decides the portion's documents."""
    counts: tuple[Count, ...]
    """One per stage, in order."""
    tallies: tuple[Tally, ...]
    """Rejects by stage and reason."""
    histogram: Histogram
    """Weight of each split and hash partition: tokens of text."""
    candidates: Candidates
    """For an exact number of validation documents."""
    spills: tuple[str, ...]
    """Names of its spill files, on the local runner."""
    classes: tuple[str, ...] = ()
    """Names of the classes of its images, sorted."""
    spill_bytes: tuple[int, ...] = ()
    """Size of each, by which a damaged one is known."""
    sketch_bytes: int = 0
    """Size of the file of its sketches, if there is one."""


def place(config: SplitConfig, *, shuffle_seed: int, partition_bits: int) -> Placement:
    """The placement of a build."""
    exact = config.documents is not None or bool(config.validation_paths)
    return Placement(
        shuffle_seed=shuffle_seed,
        partition_bits=partition_bits,
        split_seed=config.seed,
        fraction=0.0 if exact else config.fraction,
        documents=config.documents or 0,
    )


@dataclass(slots=True)
class PortionSums:
    """The sums of a portion while its batches pass."""

    placement: Placement
    counts: dict[str, list[int]] = field(default_factory=dict)
    rejects: list[pa.RecordBatch] = field(default_factory=list)
    histogram: Histogram = field(init=False)
    candidates: Candidates = field(default_factory=no_candidates)
    classes: set[str] = field(default_factory=set)
    sketches: list[pa.RecordBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.histogram = np.zeros((2, 2**self.placement.partition_bits), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """An engine shuffles the sums of each batch: 1 MiB of histogram, of which 1 % is filled."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return {**state, "histogram": filled_cells(self.histogram)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        filled, weights = state["histogram"]
        self.histogram = whole_histogram(filled, weights, self.placement.partition_bits)

    def add(self, batch: Batch) -> Hashes:
        """Count a batch; returns the shuffle hashes of its documents."""
        keys = batch.documents.column("key")
        hashes = shuffle_hashes(keys, self.placement.shuffle_seed)
        self.add_counts(batch)
        if "class" in batch.documents.schema.names:
            self.classes.update(pc.unique(batch.documents.column("class").drop_null()).to_pylist())
        self.place(hashes, batch.documents, weights(batch))
        if batch.sketches is not None:
            self.sketches.append(batch.sketches)
        return hashes

    def add_counts(self, batch: Batch) -> None:
        """Count what the stages did and keep the rejects."""
        self.rejects.append(batch.rejects)
        for one in batch.counts:
            numbers = [one.records_in, one.bytes_in, one.records_out, one.bytes_out]
            _add(self.counts, one.stage, numbers)

    def place(
        self, hashes: Hashes, documents: pa.RecordBatch, weight: npt.NDArray[np.int64]
    ) -> None:
        """Add the weight of documents, with keys and perhaps marks, where they belong."""
        held = self.placement
        where = partitions(hashes, held.partition_bits)
        threshold = fraction_threshold(held.fraction)
        validation = validation_mask(documents, seed=held.split_seed, threshold=threshold)
        for row, mask in enumerate((~validation, validation)):
            np.add.at(self.histogram[row], where[mask], weight[mask])
        if held.documents:
            splits = split_hashes(documents.column("key"), held.split_seed)
            fresh = merge_candidates(
                no_candidates(), Candidates(splits, where, weight), held.documents
            )
            self.candidates = merge_candidates(self.candidates, fresh, held.documents)

    def merge(self, other: "PortionSums") -> None:
        """Add the sums of other batches of the same portion."""
        self.rejects.extend(other.rejects)
        self.histogram += other.histogram
        self.classes |= other.classes
        self.sketches.extend(other.sketches)
        self.candidates = merge_candidates(
            self.candidates, other.candidates, max(self.placement.documents, 1)
        )
        for stage, numbers in other.counts.items():
            _add(self.counts, stage, numbers)

    def move_rejects(self, pieces: RejectPieces) -> None:
        """Hand on the rejects so far: a compressed file is one portion, whatever its size."""
        for rejects in self.rejects:
            pieces.add(rejects)
        self.rejects = []

    def write(
        self,
        work: WorkFolder,
        portion: int,
        fingerprint: str,
        spills: tuple[str, ...] = (),
        pieces: RejectPieces | None = None,
    ) -> None:
        """Write the rejects, behind those in `pieces`, then the record: from now on the portion is
        finished.
        """
        pieces = pieces or RejectPieces(work.rejects)
        self.move_rejects(pieces)
        tallies = pieces.write(portion_member(portion))
        if self.sketches:
            write_table(work.sketch(portion), batches.concat(self.sketches))
        record = PortionRecord(
            portion=portion,
            fingerprint=fingerprint,
            counts=tuple(Count(stage, *sums) for stage, sums in self.counts.items()),
            tallies=tuple(tallies),
            histogram=self.histogram,
            candidates=self.candidates,
            spills=spills,
            classes=tuple(sorted(self.classes)),
            spill_bytes=tuple((work.spills / name).stat().st_size for name in spills),
            sketch_bytes=work.sketch(portion).stat().st_size if self.sketches else 0,
        )
        write_json(work.portion(portion), _to_tree(record))


def portion_member(portion: int) -> str:
    """Name of a portion's rejects in the work folder."""
    return f"portion-{portion:06d}"


def weights(batch: Batch) -> npt.NDArray[np.int64]:
    """What each encoded document of a batch adds to its shard."""
    return np.asarray(batch.documents.column("weight"))


def read_record(path: Path) -> PortionRecord | None:
    """Read a completion record, or None where the portion is not finished by this version."""
    tree = read_json(path)
    return None if tree is None or "weights" not in tree else _from_tree(tree)


def spills_are_whole(record: PortionRecord, work: WorkFolder) -> bool:
    """Whether all files of a portion lie there in the size in which they were written.

    A portion that an engine read has none: its documents went through the engine's own shuffle.
    """
    if record.histogram.any() and not record.spills:
        return False
    paths = [work.spills / name for name in record.spills]
    expected = list(record.spill_bytes)
    if record.sketch_bytes:
        paths.append(work.sketch(record.portion))
        expected.append(record.sketch_bytes)
    return [path.stat().st_size if path.exists() else -1 for path in paths] == expected


def without_excluded(
    record: PortionRecord, placement: Placement, excluded: Excluded, sketch: Path | None
) -> PortionRecord:
    """The record as if the excluded documents had never been read; counts and rejects stay."""
    if not record.sketch_bytes:
        return record
    assert sketch is not None, f"portion {record.portion} has lost what it left for a comparison"
    rows = read_table(sketch)
    rows = rows.select([name for name in rows.schema.names if name in ("key", "weight", MARK)])
    kept = rows.filter(pa.array(excluded.find(rows.column("key")) < 0))
    sums = PortionSums(placement)
    hashes = shuffle_hashes(kept.column("key"), placement.shuffle_seed)
    sums.place(hashes, kept, np.asarray(kept.column("weight")))
    return replace(record, histogram=sums.histogram, candidates=sums.candidates)


def add_counts(left: tuple[Count, ...], right: tuple[Count, ...]) -> tuple[Count, ...]:
    """Counts added up by stage, stages in their order."""
    sums: dict[str, list[int]] = {}
    for one in (*left, *right):
        _add(sums, one.stage, [one.records_in, one.bytes_in, one.records_out, one.bytes_out])
    return tuple(Count(stage, *numbers) for stage, numbers in sums.items())


def _add(sums: dict[str, list[int]], stage: str, numbers: list[int]) -> None:
    held = sums.setdefault(stage, [0, 0, 0, 0])
    held[:] = [left + right for left, right in zip(held, numbers, strict=True)]


def _to_tree(record: PortionRecord) -> dict[str, Any]:
    filled, weights = filled_cells(record.histogram)
    return {
        "portion": record.portion,
        "fingerprint": record.fingerprint,
        "counts": [
            [one.stage, one.records_in, one.bytes_in, one.records_out, one.bytes_out]
            for one in record.counts
        ],
        "tallies": [tally_row(one) for one in record.tallies],
        "partition_bits": record.histogram.shape[1].bit_length() - 1,
        "filled": _packed(filled),
        "weights": _packed(weights),
        "candidates": [
            record.candidates.split_hash.tolist(),
            record.candidates.partition.tolist(),
            record.candidates.weight.tolist(),
        ],
        "spills": list(record.spills),
        "classes": list(record.classes),
        "spill_bytes": list(record.spill_bytes),
        "sketch_bytes": record.sketch_bytes,
    }


def _packed(numbers: npt.NDArray[Any]) -> str:
    """Little-endian in base64: the plan reads the records of all portions, one after another, and
    numbers as text would take it 7 ms each, these 1.
    """
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()


def _from_tree(tree: dict[str, Any]) -> PortionRecord:
    filled = np.frombuffer(base64.b64decode(tree["filled"]), "<i4")
    weights = np.frombuffer(base64.b64decode(tree["weights"]), "<i8")
    hashes, where, weight = tree["candidates"]
    return PortionRecord(
        portion=tree["portion"],
        fingerprint=tree["fingerprint"],
        counts=tuple(Count(*row) for row in tree["counts"]),
        tallies=tuple(map(tally_from_row, tree["tallies"])),
        histogram=whole_histogram(filled, weights, tree["partition_bits"]),
        candidates=Candidates(
            np.array(hashes, np.uint64), np.array(where, np.int64), np.array(weight, np.int64)
        ),
        spills=tuple(tree["spills"]),
        classes=tuple(tree["classes"]),
        spill_bytes=tuple(tree.get("spill_bytes", ())),
        sketch_bytes=tree.get("sketch_bytes", 0),
    )
