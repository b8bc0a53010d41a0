"""`WriteShards`: the documents of each planned shard become a finished tar in the work folder.

Sorted by shuffle hash, key and origin; of equal keys, which are neighbours then, one stays.
A shard is finished when its row file is written, and is not written again by a rerun.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import concat
from pipeline.copies import (
    Weights,
    drop_copies,
    drop_excluded,
    in_order,
    leaked_weights,
    rows_of,
)
from pipeline.exclude import Excluded
from pipeline.into_store import bring_shard, lies_there
from pipeline.machine import on_this_machine
from pipeline.manifest import Chunks, Shard
from pipeline.plan import PlannedShard
from pipeline.rejects import Tally, tally, tally_from_row, tally_row, write_rejects
from pipeline.shared_work import at_hand, drop, excluded_at, place_of
from pipeline.shuffle import Grouped
from pipeline.split import TRAIN
from pipeline.tar import Sample, index_path, write_shard
from pipeline.work import WorkFolder, read_json, write_json


class SampleCutter(Protocol):
    """What makes samples of the documents of a shard; one for each kind."""

    def samples(self, shard_name: str, documents: pa.RecordBatch) -> Iterator[Sample]:
        """The samples of a shard from its documents, in order, as rows of `ENCODED`."""
        ...


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """What decides the bytes of a shard, beside its documents."""

    cutter: SampleCutter
    """What makes samples of documents."""
    chunk_bytes: int
    """Size of a chunk, bytes."""
    deduplicate: bool
    """Of documents with equal keys, the first stays."""
    split_seed: int
    """Of the split."""
    compares: bool = False
    """Documents are compared over the whole corpus, and some of them excluded."""


@dataclass(frozen=True, slots=True)
class ShardRow:
    """What a finished shard says of itself."""

    fingerprint: str
    """Of everything that decides its bytes."""
    split: str
    """Train or validation."""
    shard: Shard
    """Its row of the manifest."""
    documents: int
    """Documents in it."""
    text_bytes: int
    """Bytes of their text."""
    lengths: tuple[int, ...]
    """Documents of 2^i to 2^(i+1) - 1 in weight, by i."""
    duplicates: tuple[Tally, ...]
    """Rejects of deduplication."""
    leaked: Weights = ()
    """What a shard of training lost to validation; if that is all, its tar is not written."""


@dataclass
class WriteShards(beam.PTransform):  # type: ignore[misc]
    """Planned shards with their documents -> names of finished tars in the work folder."""

    work: WorkFolder
    """Of this build."""
    settings: ShardSettings
    """What decides the bytes."""

    def expand(self, grouped: beam.PCollection) -> beam.PCollection:
        return grouped | "WriteShard" >> beam.Map(
            write_planned, work=self.work, settings=self.settings
        ).with_output_types(str)


def write_planned(grouped: Grouped, *, work: WorkFolder, settings: ShardSettings) -> str:
    """Write a shard unless it is finished already; returns its name."""
    planned, pieces = grouped
    with at_hand(work, work.shard_row(planned.name)) as here:
        if finished_row(here, planned) is None:
            if written_row(here, planned) is None:  # that of another plan is of the tar that goes
                with on_this_machine(here.shard_row(planned.name)):
                    drop(here, here.shard_row(planned.name))
            row = _write(here, planned, _merge(planned, pieces, settings), settings)
            if here.store and row.shard.samples:
                bring_shard(here.store, here.shards / row.shard.name)
            _write_row(here, planned.name, row)
    return planned.name


def finished_row(work: WorkFolder, planned: PlannedShard) -> ShardRow | None:
    """The row of a shard that was finished by this build or, with equal inputs, by an earlier one.

    The tar lies in the store of the build, in the work folder, or where a killed publication had
    brought it already.
    """
    row = written_row(work, planned)
    if row is None or not row.shard.samples:
        return row
    if work.store:
        return row if lies_there(work.store, row.shard) else None
    places = (work.shards / row.shard.name, work.root.parent / row.shard.name)
    lies = any(
        path.exists() and path.stat().st_size == row.shard.bytes and index_path(path).exists()
        for path in places
    )
    return row if lies else None


def written_row(work: WorkFolder, planned: PlannedShard) -> ShardRow | None:
    """The row of a shard of this plan, wherever its tar is now."""
    row = _read_row(work, planned.name)
    return row if row is not None and row.fingerprint == planned.fingerprint else None


def shard_member(name: str) -> str:
    """Name of a shard's rejects in the work folder."""
    return f"shard-{name}"


def _read_row(work: WorkFolder, name: str) -> ShardRow | None:
    tree = read_json(work.shard_row(name))
    if tree is None:
        return None
    chunks = Chunks(**{column: tuple(cells) for column, cells in tree["shard"]["chunks"].items()})
    return ShardRow(
        **{
            **tree,
            "shard": Shard(**{**tree["shard"], "chunks": chunks}),
            "lengths": tuple(tree["lengths"]),
            "leaked": tuple(map(tuple, tree.get("leaked", ()))),
            "duplicates": tuple(map(tally_from_row, tree["duplicates"])),
        }
    )


def _write_row(work: WorkFolder, name: str, row: ShardRow) -> None:
    tree = {**asdict(row), "duplicates": [tally_row(one) for one in row.duplicates]}
    write_json(work.shard_row(name), tree)


def _merge(
    planned: PlannedShard, pieces: Iterable[pa.RecordBatch], settings: ShardSettings
) -> pa.RecordBatch:
    """The shard's documents of all pieces, in order, copies included."""
    seed, threshold = settings.split_seed, planned.split_threshold
    parts = (rows_of(piece, planned.split, seed=seed, threshold=threshold) for piece in pieces)
    return in_order(concat(list(parts)))  # the parts are gone before their order takes memory


def _write(
    work: WorkFolder,
    planned: PlannedShard,
    documents: pa.RecordBatch,
    settings: ShardSettings,
) -> ShardRow:
    kept, rejects = drop_copies(documents, planned.split, deduplicate=settings.deduplicate)
    excluded = Excluded.none()
    if settings.compares:
        excluded = excluded_at(place_of(work, work.excluded))
        kept, also = drop_excluded(kept, excluded)
        rejects = concat([rejects, also])
    write_rejects(work.rejects, shard_member(planned.name), rejects)
    tar = work.shards / f"{planned.name}.tar"
    shard = Shard(tar.name, 0, 0, 0, "", Chunks((), (), (), (), (), ()))
    if kept.num_rows:
        samples = settings.cutter.samples(planned.name, kept)
        shard = write_shard(tar, samples, chunk_bytes=settings.chunk_bytes)
    return ShardRow(
        fingerprint=planned.fingerprint,
        split=planned.split,
        shard=shard,
        documents=kept.num_rows,
        text_bytes=int(np.asarray(kept.column("bytes")).sum()),
        lengths=_weight_histogram(np.asarray(kept.column("weight"))),
        duplicates=tuple(tally(rejects)),
        leaked=leaked_weights(documents, excluded) if planned.split == TRAIN else (),
    )


def _weight_histogram(weight: npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(np.bincount(np.log2(weight).astype(np.int64)).tolist())
