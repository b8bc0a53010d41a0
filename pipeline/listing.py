"""The portions of a build as a file of its work folder.

A corpus of millions of files does not fit into the job that an engine is sent, nor into one of its
elements; the job names the file, and workers read from it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipeline.corpus import CorpusFile, Portion
from pipeline.machine import on_this_machine
from pipeline.refused import RefusedError
from pipeline.shared_work import drop, give, read_lines
from pipeline.spread import Spread
from pipeline.turns import OneForEachWorker, take_turns, workers_here
from pipeline.work import WorkFolder, write_atomic


@dataclass
class ListPortions(beam.PTransform):  # type: ignore[misc]
    """Nothing -> portions in the order of the listing, over the workers."""

    listing: str
    """Place of the listing."""

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        if workers_here(start.pipeline) > 1:
            turns = start | "TurnsOfPortions" >> OneForEachWorker(Path(self.listing).parent)
            return turns | "TakePortions" >> beam.FlatMap(_in_turn, self.listing)
        return (
            start
            | "NameListing" >> beam.Create([self.listing])
            | "ReadListing" >> beam.FlatMap(read_listing)
            | "SpreadPortions" >> Spread()
        )


@contextmanager
def listing_of(
    work: WorkFolder, portions: Sequence[Portion], fingerprints: Mapping[int, str] | None = None
) -> Iterator[str]:
    """Write portions, each with its fingerprint, in this order, into a file named by its content.

    It is gone behind the context: URLs in it may hold credentials.
    """
    found = fingerprints or {}
    rows = ([asdict(portion), found.get(portion.index, "")] for portion in portions)
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path = work.root / f"listing-{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    write_atomic(path, content)
    try:
        yield give(work, path)
    finally:
        drop(work, path)


def read_listing(place: str) -> Iterator[tuple[int, Portion]]:
    """Numbered portions.

    Raises:
        RefusedError: this worker does not see the work folder.
    """
    for number, (portion, _) in enumerate(_rows(place)):
        file = CorpusFile(**portion.pop("file"))
        more = tuple(CorpusFile(**one) for one in portion.pop("more"))
        yield number, Portion(file=file, more=more, **portion)


def read_fingerprint(place: str, portion: int) -> str:
    """That of a portion, by its index."""
    return _fingerprints(place)[portion]


def _in_turn(turns: str, listing: str) -> Iterator[Portion]:
    for _, portion in take_turns(read_listing(listing), turns):
        yield portion


@lru_cache(maxsize=2)
def _fingerprints(place: str) -> dict[int, str]:
    return {portion["index"]: fingerprint for portion, fingerprint in _rows(place)}


def _rows(place: str) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        with on_this_machine(place):
            for line in read_lines(place):
                portion, fingerprint = json.loads(line)
                yield portion, fingerprint
    except FileNotFoundError:
        raise RefusedError(
            f"a worker does not see {place}: dataset_dir must be a folder that all workers share, "
            "or lie in a store, as gs://BUCKET/PREFIX"
        ) from None
