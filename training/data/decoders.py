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
from multiprocessing.reduction import send_handle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.augment.recipe import Recipe
from training.data.shared_pixels import Segment, SharedPixels

ROOT = Path(__file__).parent.parent.parent
LONGEST_SECONDS = 60.0
"""For a job; a worker that takes longer hangs, and is treated as one that crashed."""
BYTES_OF_A_JOB = 4 << 20
"""Pixels that a worker is asked for at once, at most: 27 images of 224 pixels, 1,365 of 32."""
JOBS_OF_A_WORKER = 2
"""At least so many are made of the images, so that no worker waits long for the last one."""

BUFFERS_OF_A_CALL = os.sysconf("SC_IOV_MAX")
"""Images that are written in one."""

Pixels = npt.NDArray[np.uint8]
Faults = dict[int, str]
"""What is wrong with an image, by its number."""


class Decoders:
    """`num_workers` processes; the same pixels with any number of them."""

    def __init__(self, recipe: Recipe, *, num_workers: int) -> None:
        self.recipe = recipe
        self._workers: list[_Worker | None] = [None] * num_workers
        self._pixels = SharedPixels()
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def decode(
        self, encoded: Sequence[bytes | memoryview], keys: Sequence[int]
    ) -> tuple[Pixels, Faults]:
        """Pixels (images, size, size, 3), and the faults of images that stay black.

        An image on which a worker dies or hangs is at fault; it costs no other one.
        """
        size = self.recipe.size
        segment, pixels = self._pixels.take((len(encoded), size, size, 3))
        share = -(-len(encoded) // (JOBS_OF_A_WORKER * len(self._workers)))
        each = max(1, min(share, BYTES_OF_A_JOB // (3 * size * size)))
        numbers = range(len(encoded))
        jobs = deque(_Job(list(numbers[at : at + each])) for at in numbers[::each])
        faults: Faults = {}
        busy: dict[Connection, tuple[int, _Job]] = {}
        while jobs or busy:
            self._hand_out(jobs, busy, segment, encoded, keys)
            ready = wait(list(busy), timeout=LONGEST_SECONDS)
            for connection in [one for one in busy if not ready or one in ready]:
                slot, job = busy.pop(connection)
                worker = self._workers[slot]
                assert worker is not None  # it has a job
                if not ready or not job.receive(worker, faults):
                    self._bury(slot)
                    pixels[job.numbers] = 0  # what the worker may have left there
                    jobs.extendleft(job.split(faults))
        return pixels, faults

    def close(self) -> None:
        """End the processes."""
        self._finalizer()

    def _hand_out(
        self,
        jobs: "deque[_Job]",
        busy: "dict[Connection, tuple[int, _Job]]",
        segment: Segment,
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
            own = [keys[number] for number in job.numbers]
            offset = 3 * self.recipe.size**2 * job.numbers[0]
            worker.send(images, own, self.recipe, segment, offset)

    def _bury(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.kill()


@dataclass(slots=True)
class _Job:
    """Images for one worker."""

    numbers: list[int] = field(default_factory=list)

    def receive(self, worker: "_Worker", faults: Faults) -> bool:
        """Take the answer; False where the worker has died instead."""
        try:
            found: Faults = worker.connection.recv()
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
    """A process, our end of the socket to it, and memory for images that both see.

    Images and pixels go through memory: through the socket they would be copied six times.
    """

    def __init__(self) -> None:
        self._images = os.memfd_create("images")
        ours, theirs = socket.socketpair()
        shared = (theirs.fileno(), self._images)
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
        self,
        images: Sequence[bytes | memoryview],
        keys: list[int],
        recipe: Recipe,
        segment: Segment,
        offset: int,
    ) -> None:
        """Ask for the pixels of some images, in a segment from an offset on, bytes.

        It answers with the faults of some, by their number in the job.
        """
        start = 0
        for at in range(0, len(images), BUFFERS_OF_A_CALL):
            start += os.pwritev(self._images, images[at : at + BUFFERS_OF_A_CALL], start)
        # A worker that has died is found by what it does not answer.
        with contextlib.suppress(ConnectionError):
            self.connection.send(([len(image) for image in images], keys, recipe, offset))
            send_handle(self.connection, segment.descriptor, self.process.pid)

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        os.close(self._images)


def _stop(workers: list[_Worker | None]) -> None:
    for worker in workers:
        if worker is not None:
            worker.kill()
