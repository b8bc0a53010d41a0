"""`KeepSamples`: what portions leave for a tokenizer, in files, which a killed build keeps.

With the rows goes the funnel of the portion, which tells why nothing is left if nothing is.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.batch import Batch, Count
from pipeline.exclude import read_table, write_table
from pipeline.funnel import Funnel, add_funnels, batch_funnel
from pipeline.rejects import tally_from_row, tally_row
from pipeline.sample import Beginning, Collector
from pipeline.shared_work import at_hand
from pipeline.work import WorkFolder

MERGED_AT_ONCE = 16
"""Batches of a portion; of a large compressed file there are thousands."""

Part = tuple[Beginning, Funnel]


@dataclass
class KeepSamples(beam.PTransform):  # type: ignore[misc]
    """Batches with keys -> nothing; the files of their portions, each complete or not there."""

    collector: Collector
    """What is kept."""
    work: WorkFolder
    """Of the build."""
    folder: Path
    """Where, in it."""
    in_order: bool
    """The batches of a portion come one behind another, as on the local runner."""

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        if self.in_order:
            keep = _KeepPortion(self.collector, self.work, self.folder)
            return batches | "KeepPortions" >> beam.ParDo(keep)
        return (
            batches
            | "OfBatch" >> beam.Map(_numbered_part, self.collector)
            | "OfPortion" >> beam.CombinePerKey(_Merge(self.collector))
            | "WritePortions" >> beam.Map(_keep, work=self.work, folder=self.folder)
        )


def sample_path(folder: Path, portion: int) -> Path:
    """The file of a portion."""
    return folder / f"{portion:06d}.arrow"


def is_whole(path: Path) -> bool:
    """Whether a portion has its file, of which nothing is cut off."""
    try:
        read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return True


def read_funnel(path: Path) -> Funnel:
    """The funnel of a portion."""
    tree = json.loads(read_table(path).schema.metadata[b"funnel"])
    counts = tuple(Count(**row) for row in tree["counts"])
    return Funnel(counts, tuple(map(tally_from_row, tree["tallies"])))


class _KeepPortion(beam.DoFn):  # type: ignore[misc]
    def __init__(self, collector: Collector, work: WorkFolder, folder: Path) -> None:
        self.collector = collector
        self.work = work
        self.folder = folder
        self.portion = -1
        self.parts: list[Part] = []

    def process(self, batch: Batch) -> Iterator[Any]:
        self.portion = batch.portion if not self.parts else self.portion
        assert batch.portion == self.portion, "batches of two portions are mixed"
        self.parts.append(_part(batch, self.collector))
        if batch.last or len(self.parts) == MERGED_AT_ONCE:
            self.parts = [_merge(self.parts, self.collector)]
        if batch.last:
            _keep((batch.portion, self.parts.pop()), self.work, self.folder)
        yield from ()

    def finish_bundle(self) -> None:
        assert not self.parts, "a portion has no last batch"


@dataclass(frozen=True)
class _Merge:
    collector: Collector

    def __call__(self, parts: Iterable[Part]) -> Part:
        return _merge(parts, self.collector)


def _numbered_part(batch: Batch, collector: Collector) -> tuple[int, Part]:
    return batch.portion, _part(batch, collector)


def _part(batch: Batch, collector: Collector) -> Part:
    return collector.of_batch(batch), batch_funnel(batch)


def _merge(parts: Iterable[Part], collector: Collector) -> Part:
    held = list(parts)
    kept = collector.merge([beginning for beginning, _ in held])
    return kept, add_funnels([funnel for _, funnel in held])


def _keep(numbered: tuple[int, Part], work: WorkFolder, folder: Path) -> None:
    portion, ((_, rows), funnel) = numbered
    tree = {
        "counts": [asdict(one) for one in funnel.counts],
        "tallies": [tally_row(one) for one in funnel.tallies],
    }
    told = rows.replace_schema_metadata({"funnel": json.dumps(tree)})
    with at_hand(work) as here:
        path = sample_path(here.root / folder.relative_to(work.root), portion)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, told)
