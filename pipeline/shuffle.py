"""`GroupByShard`: the one place where bulk payload moves between workers.

Documents of one shard come together by the plan, which is made from sums over the whole corpus. On
the local runner, whose GroupByKey holds everything in the memory of one process, the payload goes
to sorted spill files and Beam carries places only; on other runners it rides in their GroupByKey.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.batch import Batch, concat
from pipeline.copies import without_payload
from pipeline.hashes import shuffle_hashes
from pipeline.plan import PlannedShard, ShardPlan, partitions, read_plan, write_plan
from pipeline.portions import Placement, PortionSums
from pipeline.rejects import RejectPieces
from pipeline.shared_work import at_hand, place_of
from pipeline.spills import (
    Documents,
    Row,
    ShuffledDocuments,
    SpilledDocuments,
    as_rows,
    placed_documents,
    write_spill,
)
from pipeline.split import MARK, SPLITS, TRAIN, validation_mask
from pipeline.spread import Spread
from pipeline.turns import OneForEachWorker, take_turns, workers_here
from pipeline.work import WorkFolder

SPILL_BYTES = 256 * 2**20
"""A worker holds at most so many bytes of tokens of a portion before it spills them."""

Grouped = tuple[PlannedShard, Documents]


@dataclass
class GroupByShard(beam.PTransform):  # type: ignore[misc]
    """Encoded batches -> each planned shard with its documents, unsorted, in pieces."""

    work: WorkFolder
    """Of this build."""
    placement: Placement
    """Decides each document's place."""
    fingerprint: Callable[[int], str]
    """Of a portion, by its index."""
    make_plan: Any
    """Callable of a work folder: the plan, from the completion records in it."""
    schema: pa.Schema
    """Of the encoded documents."""
    spills: bool
    """Payload through spill files instead of Beam's GroupByKey."""
    compare: beam.PTransform | None = None
    """Numbers of finished portions -> an element when their documents are compared, if they are."""

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        group = _group_by_spills if self.spills else _group_by_key
        return group(batches, self)


def plan_when_done(portions: beam.PCollection, stage: GroupByShard) -> beam.PCollection:
    """Place of the plan, made when the last portion is finished and documents are compared."""
    if stage.compare is not None:
        portions = portions | "CompareDocuments" >> stage.compare
    return (
        portions
        | "CountPortions" >> beam.combiners.Count.Globally()
        | "PlanShards" >> beam.Map(_write_plan, stage.make_plan, stage.work)
    )


def _write_plan(_: int, make_plan: Callable[[WorkFolder], ShardPlan], work: WorkFolder) -> str:
    with at_hand(work, work.leaks) as here:
        return place_of(here, write_plan(make_plan(here), here.root))


def _group_by_spills(batches: beam.PCollection, stage: GroupByShard) -> beam.PCollection:
    spill = _SpillPortion(stage.work, stage.placement, stage.fingerprint)
    portions = batches | "SpillPortions" >> beam.ParDo(spill)
    plan = plan_when_done(portions, stage)
    folder = str(stage.work.spills)
    if workers_here(batches.pipeline) > 1:
        turns = batches.pipeline | "TurnsOfShards" >> OneForEachWorker(stage.work.root)
        opened = beam.FlatMap(_spilled_in_turn, beam.pvalue.AsSingleton(plan), folder)
        return turns | "TakeShards" >> opened
    return (
        plan
        | "ListShards" >> beam.FlatMap(lambda plan: list(enumerate(read_plan(plan).shards)))
        | "SpreadShards" >> Spread()
        | "OpenSpills" >> beam.Map(_spilled, beam.pvalue.AsSingleton(plan), folder)
    )


def _spilled_in_turn(turns: str, plan: str, folder: str) -> Iterator[Grouped]:
    for shard in take_turns(read_plan(plan).shards, turns):
        yield _spilled(shard, plan, folder)


def _spilled(shard: PlannedShard, path: str, folder: str) -> Grouped:
    plan = read_plan(path)
    spilled = SpilledDocuments(folder, plan.spills, plan.partition_bits, shard.first, shard.stop)
    return shard, spilled


@dataclass
class _Open:
    """The portion that a worker is in the middle of."""

    sums: PortionSums
    rejects: RejectPieces
    held: list[pa.RecordBatch] = field(default_factory=list)
    held_bytes: int = 0
    spills: list[str] = field(default_factory=list)
    last_position: tuple[str, int] = ("", -1)


class _SpillPortion(beam.DoFn):  # type: ignore[misc]
    """Collects the batches of a portion, which arrive together, and writes what is kept of it."""

    def __init__(
        self, work: WorkFolder, placement: Placement, fingerprint: Callable[[int], str]
    ) -> None:
        self.work = work
        self.placement = placement
        self.fingerprint = fingerprint
        self.portion: int | None = None

    def process(self, batch: Batch) -> Iterator[int]:
        if self.portion is None:
            self.portion = batch.portion
            self.open = _Open(PortionSums(self.placement), RejectPieces(self.work.rejects))
        assert batch.portion == self.portion, "batches of two portions are mixed"
        self._hold(batch)
        if batch.last:
            self._spill()
            self.open.sums.write(
                self.work,
                self.portion,
                self.fingerprint(self.portion),
                tuple(self.open.spills),
                self.open.rejects,
            )
            yield self.portion
            self.portion = None

    def finish_bundle(self) -> None:
        assert self.portion is None, f"portion {self.portion} has no last batch"

    def _hold(self, batch: Batch) -> None:
        hashes = self.open.sums.add(batch)
        self.open.sums.move_rejects(self.open.rejects)
        if batch.documents.num_rows:
            _assert_order(self.open, batch)
            placed = placed_documents(batch, hashes)
            self.open.held.append(placed)
            self.open.held_bytes += placed.nbytes
        if self.open.held_bytes > SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self.open.held:
            name = f"{self.portion:06d}-{len(self.open.spills)}.arrow"
            documents = concat(self.open.held)
            self.open.held, self.open.held_bytes = [], 0  # before their order takes memory
            write_spill(self.work.spills / name, documents)
            self.open.spills.append(name)


def _assert_order(opened: _Open, batch: Batch) -> None:
    """Batches of a portion come in the order of its records."""
    first = (batch.documents.column("source")[0].as_py(), batch.documents.column("position")[0])
    place = (first[0], first[1].as_py())
    assert place > opened.last_position, f"batch at {place} came after {opened.last_position}"
    opened.last_position = place


def _group_by_key(batches: beam.PCollection, stage: GroupByShard) -> beam.PCollection:
    portions = (
        batches
        | "WithoutPayload" >> beam.Map(_without_payload, stage.placement)
        | "GroupPortions" >> beam.GroupByKey()
        | "FinishPortions" >> beam.Map(_finish, stage.work, stage.placement, stage.fingerprint)
    )
    plan = beam.pvalue.AsSingleton(plan_when_done(portions, stage))
    return (
        batches
        | "CutByShard" >> beam.FlatMap(_cut, plan, stage.placement)
        | "GroupShards" >> beam.GroupByKey()
        | "NameShards" >> beam.Map(_shuffled, plan, stage.schema)
    )


def _shuffled(group: tuple[int, Iterable[Row]], plan: str, schema: pa.Schema) -> Grouped:
    shard, rows = group
    return read_plan(plan).shards[shard], ShuffledDocuments(rows, schema)


def _without_payload(batch: Batch, placement: Placement) -> tuple[int, PortionSums]:
    sums = PortionSums(placement)
    sums.add(batch)
    return batch.portion, sums


def _finish(
    group: tuple[int, Iterable[PortionSums]],
    work: WorkFolder,
    placement: Placement,
    fingerprint: Callable[[int], str],
) -> int:
    portion, parts = group
    with at_hand(work) as here:
        sums, rejects = PortionSums(placement), RejectPieces(here.rejects)
        for part in parts:
            sums.merge(part)
            sums.move_rejects(rejects)
        sums.write(here, portion, fingerprint(portion), pieces=rejects)
    return portion


def _cut(batch: Batch, plan: str, placement: Placement) -> Iterator[tuple[int, Row]]:
    return cut_by_shard(batch, read_plan(plan), placement)


def cut_by_shard(batch: Batch, plan: ShardPlan, placement: Placement) -> Iterator[tuple[int, Row]]:
    """The documents of a batch, each with the index of the shard that it belongs to."""
    documents = batch.documents
    hashes = shuffle_hashes(documents.column("key"), placement.shuffle_seed)
    validation = validation_mask(
        documents, seed=placement.split_seed, threshold=plan.split_threshold
    )
    where = partitions(hashes, placement.partition_bits)
    placed = placed_documents(batch, hashes)
    train = ~validation if MARK not in documents.schema.names else np.ones_like(validation)
    for split, mask in zip(SPLITS, (train, validation), strict=True):
        owned = [i for i, shard in enumerate(plan.shards) if shard.split == split]
        stops = np.array([plan.shards[i].stop for i in owned], np.int64)
        owners = np.searchsorted(stops, where[mask], side="right").tolist()
        chosen = placed.filter(pa.array(mask))
        rows = as_rows(without_payload(chosen) if split == TRAIN else chosen)
        yield from zip((owned[owner] for owner in owners), rows, strict=True)
