"""A file that grows by whole rows, and that never ends a run.

What a full disk refuses waits in memory and is tried again with the next rows: a row is in the file
completely and in order, or not at all.
"""

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from training.console import say

MOST_WAITING_BYTES = 64 * 2**20
"""Of one file; metrics of 300,000 steps."""


class PatientFile:
    """Rows are added, and written by `flush`; faults of the disk are told once."""

    def __init__(self, path: Path, *, most_waiting_bytes: int = MOST_WAITING_BYTES) -> None:
        self.path = path
        self.most_waiting_bytes = most_waiting_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._num_lost = 0
        self._fails = False

    def add(self, rows: Iterable[bytes]) -> None:
        """Keep rows until the next flush; the oldest go where too many wait."""
        for row in rows:
            self._waiting.append(row)
            self._waiting_bytes += len(row)
        while self._waiting_bytes > self.most_waiting_bytes:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._num_lost += 1

    def flush(self) -> None:
        """Write all that waits, or keep it where the disk refuses."""
        if not self._waiting:
            return
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._fails:
                say(
                    f"warning: {self.path} cannot be written: {error}; training goes on, the rows "
                    "are kept and written when there is space"
                )
            self._fails = True
            return
        if self._fails:
            say(f"{self.path} is written again{self._lost()}")
        self._waiting.clear()
        self._waiting_bytes, self._num_lost, self._fails = 0, 0, False

    def write_now(self, row: bytes) -> bool:
        """Write a row that is of no use later; False where the disk refuses it, or what waits."""
        self.flush()
        if self._waiting:
            return False
        try:
            _append(self.path, row)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Flush for the last time; tells what is lost now."""
        self.flush()
        self._num_lost += len(self._waiting)
        if self._num_lost:
            say(f"warning: {self.path} ends without its last rows{self._lost()}")
        self._waiting.clear()
        self._waiting_bytes, self._num_lost = 0, 0

    def _lost(self) -> str:
        return f"; {self._num_lost:,} rows are lost" if self._num_lost else ""


def _append(path: Path, content: bytes) -> None:
    """Add all of the content to the file, or leave the file as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            rest = memoryview(content)
            while rest:  # a disk that fills up takes a part first, and refuses the next call
                rest = rest[file.write(rest) :]
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise
