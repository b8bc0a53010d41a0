"""Worker processes of one machine take what is next when they are free: portions, then shards.

Beam's local runner deals elements out before the first one is worked on: of 129 portions of 8.6 GB
of text one of two workers got 65, of 1.2 s each, and beside other programs the other one waited for
it for 3 s. Engines deal by themselves, and run a bundle again whose worker is lost: its elements
have to be its own there.
"""

import fcntl
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.spread import Spread

T = TypeVar("T")


@dataclass
class OneForEachWorker(beam.PTransform):  # type: ignore[misc]
    """Nothing -> a path for each worker of this machine, by which they `take_turns`."""

    folder: Path
    """Of the build; of an earlier run's turns nothing is used."""

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        path = str(self.folder / f".turns-{secrets.token_hex(8)}")
        workers = [(number, path) for number in range(workers_here(start.pipeline))]
        return start | "NameTurns" >> beam.Create(workers) | "SpreadTurns" >> Spread()


def workers_here(pipeline: beam.Pipeline) -> int:
    """Worker processes of the local runner; of an engine, which deals itself, 1."""
    if not isinstance(pipeline.runner, FnApiRunner):
        return 1
    return int(pipeline.options.view_as(DirectOptions).direct_num_workers)


def take_turns(elements: Iterable[T], turns: str) -> Iterator[T]:
    """Of equal elements in several processes, each to the one that comes for it first.

    Args:
        elements: the same ones, in the same order, in each process.
        turns: path of a file that they share.
    """
    turn = _next_turn(turns)
    for number, element in enumerate(elements):
        if number == turn:
            yield element
            turn = _next_turn(turns)


def _next_turn(path: str) -> int:
    """0, 1, 2, ...: the file has a byte for each that was taken."""
    with Path(path).open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        turn = Path(path).stat().st_size
        file.write(b".")
    return turn
