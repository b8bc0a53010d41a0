"""One build at a time: a lock on the dataset folder that dies with its process."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

FILE_NAME = ".lock"


class DatasetLock:
    """Holds `DATASET/.lock`; the folder is made if it does not exist.

    Raises:
        ValueError: another process holds it.
    """

    def __init__(self, dataset_dir: Path) -> None:
        self.path = dataset_dir / FILE_NAME
        self.descriptor = -1

    def __enter__(self) -> "DatasetLock":
        if self.path.parent.exists() and not self.path.parent.is_dir():
            raise ValueError(f"{self.path.parent}: is a file; dataset_dir names a folder")
        while self.descriptor < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # the holder before us removed its scratch folder
                self._try()
        os.ftruncate(self.descriptor, 0)
        os.write(self.descriptor, str(os.getpid()).encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)

    def _try(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode() or "?"
            os.close(descriptor)
            raise ValueError(
                f"{self.path.parent}: another build (process {holder}) is writing this dataset; "
                "wait for it, or choose another dataset_dir"
            ) from None
        if self._is_current(descriptor):
            self.descriptor = descriptor
        else:  # the holder before us removed the file between our open and our lock
            os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False
