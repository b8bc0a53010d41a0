"""Images are decoded in a process of their own, so that a bad one takes nothing else with it.

One child for each Beam worker lives on from batch to batch. An image at which it dies, by a crash
or by a limit, is tried once more, alone in a fresh child: what becomes of an image depends on that
image, not on those before it.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.images.decode import BadImage
from pipeline.images.process import Outcome
from pipeline.images.sandbox_child import OUT_OF_MEMORY, complete, send, unpack_outcome

HELD_BYTES = 64 * 2**20
"""What a larger batch took of memory is given back behind it."""
STALL_FACTOR = 10
"""A child that computes nothing, so that its CPU time stands still, is looked at so many times the
limit apart by the clock, and ended when it slept at two looks and did nothing between them. One
that waits for its turn on a loaded machine does not sleep."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost."""

    cpu_seconds: float
    """CPU time, which a loaded machine does not change."""
    memory_mib: int
    """Memory above that of the idle child and of the batch, MiB."""


class Sandbox:
    """Applies a function to images, each of which may crash it, hang it or blow up its memory.

    Args:
        function: from the stored bytes of an image to its outcome; importable by the child.
        limits: of each image.
    """

    def __init__(self, function: Callable[[bytes], Outcome], limits: Limits) -> None:
        self.function = function
        self.limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._batch, self._answers = os.memfd_create("images"), os.memfd_create("answers")
        """Hold the bytes of a batch and its outcomes: through the socket all would be copied four
        times, and both processes would wake up for each image."""

    def map(self, images: Sequence[bytes | memoryview]) -> list[Outcome]:
        """The outcome of each image, in order."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(images):
            answered, failure = self._attempt(images[len(outcomes) :])
            outcomes += answered
            if failure:
                alone, failure = self._attempt(images[len(outcomes) : len(outcomes) + 1])
                outcomes += alone if failure is None else [("decode", failure)]
        return outcomes

    def close(self) -> None:
        """End the child and give everything back."""
        self._end()
        os.close(self._batch)
        os.close(self._answers)

    def _attempt(
        self, images: Sequence[bytes | memoryview]
    ) -> tuple[list[Outcome], BadImage | None]:
        """The outcomes up to the end, or up to an image at which the child died, and why."""
        if self._child is None:
            self._start()
        failure = None
        try:
            send(self._socket, pickle.dumps(self._write(images)))
            self._wait()
        except TimeoutError:
            failure = self._stalled()
        except (EOFError, OSError):
            failure = self._died()
        answers = os.pread(self._answers, os.fstat(self._answers).st_size, 0)
        return [unpack_outcome(message) for message in complete(answers)], failure

    def _write(self, images: Sequence[bytes | memoryview]) -> list[int]:
        """Put a batch where the child reads it, and make place for answers; returns the sizes."""
        os.ftruncate(self._answers, 0)
        if os.fstat(self._batch).st_size > HELD_BYTES:
            os.ftruncate(self._batch, 0)
        start = 0
        for image in images:
            start += os.pwrite(self._batch, image, start)
        assert start == sum(map(len, images)), "a batch was not written whole"
        return list(map(len, images))

    def _wait(self) -> None:
        """Until the child says a word.

        Raises:
            EOFError: it is gone.
            TimeoutError: it sleeps, as it did at the last look, and did nothing in between.
        """
        before = None
        while True:
            try:
                if self._socket.recv(1):
                    return
            except TimeoutError:
                asleep = self._asleep()
                if asleep is not None and asleep == before:
                    raise
                before = asleep
            else:
                raise EOFError

    def _asleep(self) -> tuple[int, ...] | None:
        """Bytes answered, and CPU time of the child's main thread, which decodes, if that sleeps;
        None if it does not.
        """
        assert self._child is not None
        answered = os.fstat(self._answers).st_size
        stat = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/stat")
        if not stat.exists():  # not Linux: the clock alone decides
            return (answered,)
        fields = stat.read_text().rpartition(")")[2].split()
        return (answered, int(fields[11]), int(fields[12])) if fields[0] == "S" else None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        shared = [theirs.fileno(), self._batch, self._answers]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.images.sandbox_child", *map(str, shared)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what libraries say of damaged files
            pass_fds=shared,
            env=_environment(),
        )
        theirs.close()
        self._socket = ours
        try:
            send(ours, pickle.dumps((os.getpid(), self.function, self.limits)))
            self._wait()
        except (EOFError, OSError):
            code = self._child.wait()
            raise RuntimeError(f"the decoding process ended at its start with {code}") from None
        ours.settimeout(STALL_FACTOR * self.limits.cpu_seconds)

    def _end(self) -> None:
        if self._child is not None:
            self._socket.close()
            self._child.kill()
            self._child.wait()
            self._child = None

    def _died(self) -> BadImage:
        assert self._child is not None
        code = self._child.wait()
        self._end()
        if code == -signal.SIGPROF:
            limit = f"images.decode.time_limit_seconds={self.limits.cpu_seconds:g}"
            return BadImage("too_slow", f"CPU time above {limit}")
        if code == OUT_OF_MEMORY:
            limit = f"images.decode.memory_mib={self.limits.memory_mib}"
            return BadImage("out_of_memory", f"memory above {limit}")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return BadImage("decoder_crashed", how)

    def _stalled(self) -> BadImage:
        self._end()
        seconds = STALL_FACTOR * self.limits.cpu_seconds
        return BadImage("too_slow", f"no answer and no CPU time used up in {seconds:g} s")


def _environment() -> dict[str, str]:
    """The child finds this package where we did, and has one core as its Beam worker has."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
