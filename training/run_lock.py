"""One process group at a time in a run folder: a lock that dies with rank 0."""

import fcntl
import os
import time
from pathlib import Path

from training import distributed

WAIT_SECONDS = 10.0
"""A killed predecessor may take so long to let go of its files."""


def lock_run_dir(run_dir: Path) -> int:
    """Hold `RUN/.lock` until this process ends; every rank calls it, rank 0 holds it.

    Returns:
        The descriptor that holds the lock on rank 0, -1 elsewhere.

    Raises:
        ValueError: another run is writing there; on every rank.
    """
    descriptor, fault = -1, ""
    if distributed.is_rank_zero():
        descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if _take(descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        else:
            holder = os.read(descriptor, 32).decode() or "?"
            fault = f"{run_dir}: another run (process {holder}) is writing there; wait for its end"
    fault = distributed.broadcast(fault)
    if fault:
        raise ValueError(f"{fault}, or choose another run_dir")
    return descriptor


def _take(descriptor: int) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        else:
            return True
