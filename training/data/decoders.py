"""Loader workers that decode images: processes that start in a third of a second and may crash."""

import os
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.augment.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
LONGEST_SECONDS = 60.0
"""For a job; a worker that takes longer hangs, and is treated as one that crashed."""
BYTES_OF_A_JOB = 1 << 20
"""Pixels that a worker is asked for at once: 7 images of 224 pixels, 340 of 32."""

Pixels = npt.NDArray[np.uint8]
Faults = dict[int, str]
"""What is wrong with an image, by its number."""


class Decoders:
    """`num_workers` processes; the same pixels with any number of them."""

    def __init__(self, recipe: Recipe, *, num_workers: int) -> None:
        self.recipe = recipe
        self._workers: list[_Worker | None] = [None] * num_workers
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def decode(
        self, encoded: Sequence[bytes | memoryview], keys: Sequence[int]
    ) -> tuple[Pixels, Faults]:
        """Pixels (images, size, size, 3), and the faults of images that stay black.

        An image on which a worker dies or hangs is at fault; it costs no other one.
        """
        size = self.recipe.size
        pixels = np.zeros((len(encoded), size, size, 3), np.uint8)
        each = max(1, BYTES_OF_A_JOB // (3 * size * size))
        numbers = range(len(encoded))
        jobs = deque(_Job(list(numbers[at : at + each])) for at in numbers[::each])
        faults: Faults = {}
        busy: dict[Connection, tuple[int, _Job]] = {}
        while jobs or busy:
            self._hand_out(jobs, busy, encoded, keys)
            ready = wait(list(busy), timeout=LONGEST_SECONDS)
            for connection in [one for one in busy if not ready or one in ready]:
                slot, job = busy.pop(connection)
                if not ready or not job.receive(connection, pixels, faults):
                    self._bury(slot)
                    jobs.extendleft(job.split(faults))
        return pixels, faults

    def close(self) -> None:
        """End the processes."""
        self._finalizer()

    def _hand_out(
        self,
        jobs: "deque[_Job]",
        busy: "dict[Connection, tuple[int, _Job]]",
        encoded: Sequence[bytes | memoryview],
        keys: Sequence[int],
    ) -> None:
        """Give a job to each worker that has none."""
        taken = {slot for slot, _ in busy.values()}
        for slot in range(len(self._workers)):
            if not jobs or slot in taken:
                continue
            job = jobs.popleft()
            worker = self._workers[slot] = self._workers[slot] or _Worker()
            images = [bytes(encoded[number]) for number in job.numbers]
            busy[worker.connection] = (slot, job)
            try:
                worker.connection.send((images, [keys[n] for n in job.numbers], self.recipe))
            except ConnectionError:
                continue  # it died; receiving will tell

    def _bury(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.kill()


@dataclass(slots=True)
class _Job:
    """Images for one worker."""

    numbers: list[int] = field(default_factory=list)

    def receive(self, connection: Connection, pixels: Pixels, faults: Faults) -> bool:
        """Take the answer; False where the worker has died instead."""
        try:
            found: Faults = connection.recv()
            connection.recv_bytes_into(
                pixels[self.numbers[0] : self.numbers[-1] + 1].data.cast("B")
            )
        except (EOFError, ConnectionError):
            return False
        faults |= {self.numbers[number]: fault for number, fault in found.items()}
        return True

    def split(self, faults: Faults) -> "list[_Job]":
        """The images one by one, to find the one that killed a worker; one alone is it."""
        if len(self.numbers) > 1:
            return [_Job([number]) for number in reversed(self.numbers)]
        faults[self.numbers[0]] = "a worker crashed or hung on it"
        return []


class _Worker:
    """A process and our end of the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "training.data.decoding_worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": search.rstrip(os.pathsep)},
                start_new_session=True,  # Ctrl-C is for the run, whose end is ours
            )
        self.connection = Connection(ours.detach())

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _stop(workers: list[_Worker | None]) -> None:
    for worker in workers:
        if worker is not None:
            worker.kill()
