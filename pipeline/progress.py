"""Progress of a build: workers count into small files, the driver adds them up and shows a line."""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import apache_beam as beam
from rich.console import Console
from rich.live import Live

from pipeline.batch import Batch
from pipeline.corpus import Portion
from pipeline.shared_work import drop_all, place_of, write_place
from pipeline.store import Store
from pipeline.work import WorkFolder, read_json

WRITE_SECONDS = 0.5
"""A worker writes its counters at most so often."""
QUIET_SECONDS = 5.0
"""When nothing was read for so long, no time left is guessed."""
STORE_SECONDS = 10.0
"""So often counters go to a store, and come from it, where machines share no folder."""
LIVE_SECONDS, PLAIN_SECONDS = 0.5, 5.0
"""How often the line is renewed on a terminal, and printed elsewhere."""


@dataclass
class CountProgress(beam.PTransform):  # type: ignore[misc]
    """Batches unchanged; counted in the work folder."""

    work: WorkFolder
    """Of the build."""

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | "CountBatch" >> beam.ParDo(_CountBatch(self.work))


class _CountBatch(beam.DoFn):  # type: ignore[misc]
    """The counters of one worker."""

    def __init__(self, work: WorkFolder) -> None:
        self.work = work

    def setup(self) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.json"
        self.path = self.work.progress / name
        self.counts = [0, 0, 0]
        self.written = 0.0

    def process(self, batch: Batch) -> Iterator[Batch]:
        yield batch
        self._add(batch)

    def _add(self, batch: Batch) -> None:
        read = batch.counts[0] if batch.counts else None
        self.counts[0] += read.records_in if read else batch.documents.num_rows
        self.counts[1] += batch.read_bytes
        self.counts[2] += batch.rejects.num_rows
        silent = time.monotonic() - self.written
        if silent > STORE_SECONDS if self.work.shared else batch.last or silent > WRITE_SECONDS:
            self.written = time.monotonic()
            self._write(str(self.counts))

    def _write(self, counts: str) -> None:
        if self.work.shared:
            with suppress(OSError):  # the build goes on without
                write_place(place_of(self.work, self.path), counts.encode())
        elif self.work.progress.is_dir():  # a build that ended has none
            self.path.write_text(counts)


class ProgressDisplay:
    """Shows the progress of a phase while it is open: a live line, or one every few seconds."""

    def __init__(self, work: WorkFolder, portions: Sequence[Portion], phase: str) -> None:
        self.work = work
        self.total_bytes = sum(portion.bytes for portion in portions)
        self.phase = phase
        self.started = time.monotonic()
        self.last = (0, 0.0)
        """Bytes read, and the seconds after which they were: behind it other work is done."""
        self.counters: list[Any] = []
        self.num_shards, self.asked = 0, -math.inf
        """What a store has of them, and of finished shards, and when it was asked."""
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        for path in self.work.progress.iterdir():
            path.unlink()
        if self.work.shared:
            drop_all(self.work, self.work.progress)
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.done.set()
        self.thread.join(PLAIN_SECONDS)  # a store may keep it

    def line(self) -> str:
        """Records, MB, rejects, rate and time left; then shards, also what is written of one."""
        if self.work.shared and time.monotonic() - self.asked > STORE_SECONDS:
            self._ask()
        if not self.work.shared:
            self.counters = [read_json(path) for path in self.work.progress.glob("*.json")]
        columns = zip(*filter(None, self.counters), strict=True)
        sums = [sum(column) for column in columns] or [0, 0, 0]
        records, read_bytes, rejects = sums
        seconds = time.monotonic() - self.started
        if read_bytes != self.last[0]:
            self.last = (read_bytes, seconds)
        rate = read_bytes / max(self.last[1], 1e-3)
        share = min(read_bytes / self.total_bytes, 1.0) if self.total_bytes else 0.0
        parts = [
            f"{self.phase}: {records:,} records",
            f"{read_bytes / 1e6:,.0f} of {self.total_bytes / 1e6:,.0f} MB",
            f"{rejects:,} rejects",
            f"{rate / 1e6:.1f} MB/s",
        ]
        quiet = 2 * STORE_SECONDS if self.work.shared else QUIET_SECONDS
        if 0.01 < share < 1 and seconds - self.last[1] < quiet:
            parts.append(f"{_duration(seconds / share - seconds)} left")
        return ", ".join([*parts, *self._written()])

    def _ask(self) -> None:
        """What machines that share no folder with this one left in the store."""
        self.asked = time.monotonic()
        with suppress(OSError, ValueError):  # the build tells what a store says
            store = Store.open(place_of(self.work, self.work.progress))
            names = store.sizes(pauses=())
            self.counters = [json.loads(store.read(name, pauses=())) for name in names]
            self.num_shards = len(Store.open(place_of(self.work, self.work.shards)).sizes(()))

    def _written(self) -> Iterator[str]:
        """Finished shards, and the bytes of all, of growing ones too: they have temporary names."""
        if self.work.shared:
            if self.num_shards:
                yield f"{self.num_shards:,} shards in the store"
            return
        num_shards = num_bytes = 0
        with os.scandir(self.work.shards) as entries:
            for entry in entries:
                num_shards += entry.name.endswith(".json")
                if ".tar" in entry.name:
                    with suppress(FileNotFoundError):  # it has got its name
                        num_bytes += entry.stat().st_size
        if self.work.store and (num_shards or num_bytes):
            yield f"{num_shards:,} shards in the store, {num_bytes / 1e6:,.0f} MB on the way"
        elif num_bytes:
            yield f"{num_shards:,} shards written, {num_bytes / 1e6:,.0f} MB"

    def _show(self) -> None:
        console = Console(stderr=True, highlight=False)
        if console.is_terminal:
            with Live(self.line(), console=console, transient=True, auto_refresh=False) as live:
                while not self.done.wait(LIVE_SECONDS):
                    live.update(self.line(), refresh=True)
        else:
            while not self.done.wait(PLAIN_SECONDS):
                console.print(self.line(), soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
