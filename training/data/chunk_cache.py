"""Chunks of a remote dataset on a disk of the node, shared by its ranks.

A chunk is one file, named after its contents, complete or absent. Locks are flock's, which end with
their process: a kill leaves at most a `.part` that the next process takes over or removes. The
state is the folder itself; `lock` holds the bytes that were given out, never less than files take.

fsspec's `filecache` and `blockcache` know no limit of size and no checksums; webdataset's
`FileCache` takes whole shards, evicts without a lock and may exceed its limit.
"""

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.data.traffic import Traffic

KEPT_SHARE = 0.95
"""Of the limit, what is left where room is made: the folder is not listed for every chunk."""
OWN_BYTES = 4096
"""Of the limit, for the file `lock`."""
QUIET_SECONDS = 60.0
"""A disk that refused a chunk is left alone for so long."""
LONGEST_WAIT_SECONDS = 0.1
"""Between two looks at a chunk that another process fetches."""

logger = logging.getLogger(__name__)


class ChunkCache:
    """A folder that never takes more than `limit_bytes`."""

    def __init__(self, folder: str, limit_bytes: int, traffic: Traffic | None = None) -> None:
        """Open or make the folder, and count what is in it.

        Raises:
            ValueError: it cannot be written.
        """
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes - OWN_BYTES
        self._traffic = traffic or Traffic()
        self._refused_until, self._is_refusing = 0.0, False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone() as account:
                self._make_room(account, 0)
        except OSError as error:
            raise ValueError(
                f"data.store.cache_dir: {folder} cannot be written: {error.strerror}; name a "
                "folder on a disk of the node, or leave it empty"
            ) from None

    def get(
        self, name: str, fetch: Callable[[], bytes], *, is_good: Callable[[bytes], bool]
    ) -> bytes:
        """The chunk of this name: from the folder, or fetched by one process for all of the node.

        Raises:
            Whatever `fetch` raises.
        """
        content = self._find(name, is_good)
        if content is not None or time.monotonic() < self._refused_until:
            return fetch() if content is None else content
        try:
            claim = self._claim(name)
        except OSError as error:
            self._tell_refused(error)
            return fetch()
        try:
            content = self._find(name, is_good)  # of who had the claim before
            if content is None:
                content = fetch()
                self._keep(claim, name, content)
            return content
        finally:
            self._release(claim, name)

    def _find(self, name: str, is_good: Callable[[bytes], bool]) -> bytes | None:
        path = self.folder / name
        try:
            content = path.read_bytes()
            if is_good(content):
                os.utime(path)
                self._traffic.count(num_cache_hits=1)
                return content
            with self._alone() as account:
                account.add(-path.stat().st_size)
                path.unlink()
            self._traffic.count(num_cache_faults=1)
            logger.warning("warning: %s: damaged; the chunk is fetched again", path)
        except OSError:  # not there, or made room for another, or a disk that fails: it is fetched
            return None
        return None

    def _claim(self, name: str) -> int:
        """The file in which only this thread of all processes may write; waits for others."""
        path, pause = self.folder / f"{name}.part", 0.002
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_ino == path.stat().st_ino:
                    return file
            except (BlockingIOError, FileNotFoundError):
                pass  # another's, or just renamed or removed
            os.close(file)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT_SECONDS)

    def _keep(self, claim: int, name: str, content: bytes) -> None:
        """Write the chunk, if the disk takes it: all of its space first, then its bytes."""
        part = self.folder / f"{name}.part"
        try:
            with self._alone() as account:
                os.ftruncate(claim, 0)
                if not self._make_room(account, len(content)):
                    return
                account.add(len(content))
                _reserve(claim, len(content))
            rest, place = memoryview(content), 0
            while place < len(content):
                place += os.pwrite(claim, rest[place:], place)
            with self._alone():
                part.rename(self.folder / name)
        except OSError as error:
            self._tell_refused(error)
        else:
            self._is_refusing = False

    def _release(self, claim: int, name: str) -> None:
        """Take away what did not become a chunk, and let others have the claim."""
        part = self.folder / f"{name}.part"
        with suppress(OSError), self._alone() as account:
            if part.exists() and part.stat().st_ino == os.fstat(claim).st_ino:
                account.add(-part.stat().st_size)
                part.unlink()
        os.close(claim)

    def _make_room(self, account: "_Account", size: int) -> bool:
        """Remove the least recently used chunks, where there is too little room for `size` more."""
        if size > self.limit_bytes:
            return False
        if account.used is not None and size and account.used + size <= self.limit_bytes:
            return True
        found = sorted(self._list())
        used = sum(bytes_ for _, bytes_, _ in found)
        if used + size > self.limit_bytes:
            target = min(int(self.limit_bytes * KEPT_SHARE), self.limit_bytes - size)
            for _, bytes_, path in found:
                if used <= target:
                    break
                if path.suffix != ".part":
                    path.unlink()
                    used -= bytes_
        account.set(used)
        return used + size <= self.limit_bytes

    def _list(self) -> Iterator[tuple[int, int, Path]]:
        """Time of use, bytes and path of each chunk, and of each that is being written."""
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            if entry.name != "lock" and not (path.suffix == ".part" and _remove_orphan(path)):
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path

    @contextmanager
    def _alone(self) -> Iterator["_Account"]:
        """Whatever changes what the folder takes is done by one thread of all processes."""
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield _Account(file)
        finally:
            os.close(file)

    def _tell_refused(self, error: OSError) -> None:
        self._refused_until = time.monotonic() + QUIET_SECONDS
        if not self._is_refusing:
            logger.warning(
                "warning: %s cannot be written: %s; training goes on without new chunks in it",
                self.folder,
                error.strerror or error,
            )
        self._is_refusing = True


class _Account:
    """The bytes that the files of the folder may take, in the file `lock`; None where unknown."""

    def __init__(self, file: int) -> None:
        self._file = file
        text = os.pread(file, 32, 0).strip()
        self.used = int(text) if text.isdigit() else None

    def set(self, used: int) -> None:
        self.used = used
        os.pwrite(self._file, b"%-31d\n" % used, 0)

    def add(self, amount: int) -> None:
        if self.used is not None:
            self.set(max(self.used + amount, 0))


def chunk_name(sha256: str, start: int, stop: int) -> str:
    """The name of a chunk of a shard: the same for a dataset and its copies, wherever they lie."""
    return hashlib.sha256(f"{sha256}:{start}:{stop}".encode()).hexdigest()[:40]


def _reserve(file: int, size: int) -> None:
    """Take the space of a file before its bytes come, so that a full disk says so at once."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems without it
            raise
        os.ftruncate(file, size)


def _remove_orphan(part: Path) -> bool:
    """Remove what a killed process has begun; False where it is being written."""
    file = os.open(part, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()  # under its lock: who waits for it sees that it is gone
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
