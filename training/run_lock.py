"""One process group at a time in a run folder: a lock that dies with rank 0."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training import distributed

WAIT_SECONDS = 10.0
"""A killed predecessor may take so long to let go of its files."""


@contextmanager
def hold_run_dir(run_dir: Path) -> Iterator[None]:
    """Make the folder and hold `RUN/.lock` in the context; every rank calls it, rank 0 holds.

    Raises:
        ValueError: another run is writing there; on every rank.
    """
    descriptor, fault = -1, ""
    if distributed.is_rank_zero():
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        fault = _take(descriptor)
    fault = distributed.broadcast(fault)
    try:
        if fault:
            raise ValueError(f"{run_dir}: {fault}; wait for its end, or choose another run_dir")
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _take(descriptor: int) -> str:
    """Take the lock and leave our process id in it; who holds it, if someone else does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return f"another run (process {os.read(descriptor, 32).decode()}) is writing there"
            time.sleep(0.2)
        else:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return ""
