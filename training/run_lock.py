"""One process group at a time in a run folder: a lock that dies with rank 0."""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from training import distributed

NAME = ".lock"
WAIT_SECONDS = 10.0
"""A killed predecessor may take so long to let go of its files."""


@contextmanager
def hold_run_dir(run_dir: Path) -> Iterator[None]:
    """Make the folder and hold `RUN/.lock` in the context; every rank calls it, rank 0 holds.

    Behind an error a folder with nothing but the lock in it goes again: a run that was refused
    leaves none behind, as that of a mistyped `run_dir`.

    Raises:
        ValueError: another run is writing there; on every rank.
    """
    descriptor, fault, made = -1, "", list[Path]()
    if distributed.is_rank_zero():
        made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        descriptor, fault = _take(run_dir / NAME)
    fault = distributed.broadcast(fault)
    try:
        _refuse(run_dir, fault)
        yield
    except BaseException:
        if descriptor >= 0 and not fault:
            _leave_nothing(run_dir, made)
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _take(path: Path) -> tuple[int, str]:
    """A descriptor of the lock, with our process id in it; who holds it, if someone else does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a refused run took its folder along
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.read(descriptor, 32).decode()
                    return descriptor, f"another run (process {holder}) is writing there"
            else:
                if _is_current(path, descriptor):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    return descriptor, ""
            os.close(descriptor)
        time.sleep(0.2)


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the file is still the one under the path: a refused run may have removed it."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))


def _refuse(run_dir: Path, fault: str) -> None:
    if fault:
        raise ValueError(f"{run_dir}: {fault}; wait for its end, or choose another run_dir")


def _leave_nothing(run_dir: Path, made: Sequence[Path]) -> None:
    """Remove the lock, if there is nothing beside it, and of the folders, inner ones first, those
    that are empty then.
    """
    if [path.name for path in run_dir.iterdir()] != [NAME]:
        return
    (run_dir / NAME).unlink()
    with suppress(OSError):  # another run has begun there
        for folder in made:
            folder.rmdir()
