"""Loader workers that decode images: processes that start in a third of a second and may crash."""

import contextlib
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
BYTES_OF_A_JOB = 4 << 20
"""Pixels that a worker is asked for at once, at most: 27 images of 224 pixels, 1,365 of 32."""
JOBS_OF_A_WORKER = 2
"""At least so many are made of the images, so that no worker waits long for the last one."""

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
        share = -(-len(encoded) // (JOBS_OF_A_WORKER * len(self._workers)))
        each = max(1, min(share, BYTES_OF_A_JOB // (3 * size * size)))
        numbers = range(len(encoded))
        jobs = deque(_Job(list(numbers[at : at + each])) for at in numbers[::each])
        faults: Faults = {}
        busy: dict[Connection, tuple[int, _Job]] = {}
        while jobs or busy:
            self._hand_out(jobs, busy, encoded, keys)
            ready = wait(list(busy), timeout=LONGEST_SECONDS)
            for connection in [one for one in busy if not ready or one in ready]:
                slot, job = busy.pop(connection)
                worker = self._workers[slot]
                assert worker is not None  # it has a job
                if not ready or not job.receive(worker, pixels, faults):
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
            busy[worker.connection] = (slot, job)
            images = [encoded[number] for number in job.numbers]
            worker.send(images, [keys[number] for number in job.numbers], self.recipe)

    def _bury(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.kill()


@dataclass(slots=True)
class _Job:
    """Images for one worker."""

    numbers: list[int] = field(default_factory=list)

    def receive(self, worker: "_Worker", pixels: Pixels, faults: Faults) -> bool:
        """Take the answer; False where the worker has died instead."""
        try:
            found = worker.receive(pixels[self.numbers[0] : self.numbers[-1] + 1])
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
    """A process, our end of the socket to it, and memory that both see.

    Images and pixels go through that memory: through the socket they would be copied six times.
    """

    def __init__(self) -> None:
        self._images, self._pixels = os.memfd_create("images"), os.memfd_create("pixels")
        ours, theirs = socket.socketpair()
        shared = (theirs.fileno(), self._images, self._pixels)
        search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "training.data.decoding_worker", *map(str, shared)],
                pass_fds=shared,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": search.rstrip(os.pathsep)},
                start_new_session=True,  # Ctrl-C is for the run, whose end is ours
            )
        self.connection = Connection(ours.detach())

    def send(
        self, images: Sequence[bytes | memoryview], keys: Sequence[int], recipe: Recipe
    ) -> None:
        """Ask for the pixels of some images."""
        start = 0
        for image in images:
            start += os.pwrite(self._images, image, start)
        # A worker that has died is found by what it does not answer.
        with contextlib.suppress(ConnectionError):
            self.connection.send(([len(image) for image in images], keys, recipe))

    def receive(self, pixels: Pixels) -> Faults:
        """Fill the pixels that were asked for; the faults of some, by their number in the job.

        Raises:
            EOFError: the process has died; other errors of connections say so too.
        """
        faults: Faults = self.connection.recv()
        if os.preadv(self._pixels, [pixels.data.cast("B")], 0) < pixels.nbytes:
            raise EOFError
        return faults

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        os.close(self._images)
        os.close(self._pixels)


def _stop(workers: list[_Worker | None]) -> None:
    for worker in workers:
        if worker is not None:
            worker.kill()
