"""Chunks of a split, read and checked: local shards by mmap, remote ones by range requests.

A chunk is read whole once and compared with its crc32 from the manifest; only then are its samples
used. A transient error is tried again; bytes that stay wrong are a `CorruptChunkError` with the
shard, the chunk and the byte range.
"""

import logging
import mmap
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from pipeline.manifest import FILE_NAME, Manifest, Shard, parse_manifest, read_manifest
from training.data.blocks import Blocks, parse_blocks

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before reading again: a flaky store gets 16 s, a dead one stops the run soon."""
OPEN_CHUNKS = 512
"""Chunks kept open; each may hold a file descriptor, and 1024 is a usual limit of a process."""

logger = logging.getLogger(__name__)


class CorruptChunkError(ValueError):
    """A chunk whose bytes are not those that were written."""

    def __init__(self, message: str, chunk: int) -> None:
        super().__init__(message)
        self.chunk = chunk


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """The chunks of a split as columns, in the order of its shards."""

    shard: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    samples: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    crc32: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "ChunkTable":
        """The table of these shards; 640,000 chunks take 0.2 s."""
        lengths = [len(shard.chunks) for shard in shards]
        names = ("start", "stop", "samples", "tokens", "crc32")
        columns = {
            name: np.fromiter(
                chain.from_iterable(getattr(shard.chunks, name) for shard in shards),
                np.int64,
                sum(lengths),
            )
            for name in names
        }
        return cls(shard=np.repeat(np.arange(len(shards)), lengths), **columns)

    def __len__(self) -> int:
        return len(self.shard)


def load_manifest(dataset_dir: str) -> Manifest:
    """The manifest of a local or remote dataset.

    Raises:
        FileNotFoundError: there is no complete dataset.
        ValueError: the manifest is damaged.
    """
    if is_local(dataset_dir):
        return read_manifest(_local_path(dataset_dir))
    fs, root = fsspec.core.url_to_fs(dataset_dir)
    try:
        text = _retrying(lambda: bytes(fs.cat_file(f"{root}/{FILE_NAME}")), what=dataset_dir)
    except FileNotFoundError:
        raise FileNotFoundError(f"{dataset_dir}: no {FILE_NAME}, so no complete dataset") from None
    return parse_manifest(text.decode("utf-8"), where=f"{dataset_dir}/{FILE_NAME}")


def is_local(dataset_dir: str) -> bool:
    """Whether a dataset is on a file system of this machine."""
    return fsspec.core.split_protocol(dataset_dir)[0] in (None, "file", "local")


class ChunkReader:
    """Reads the chunks of a split; keeps remote ones in memory up to `cache_mib`.

    The constructor compares the size of every shard with the manifest.
    """

    def __init__(
        self,
        dataset_dir: str,
        shards: Sequence[Shard],
        *,
        token_dtype: str,
        cache_mib: int = 2048,
        num_loader_workers: int = 2,
    ) -> None:
        """Open the shards.

        Raises:
            ValueError: a shard is missing or of another size than the manifest says.
        """
        self.table = ChunkTable.of(shards)
        self._names = [shard.name for shard in shards]
        self.token_dtype = np.dtype(token_dtype).newbyteorder("<")
        self._files: _LocalShards | _RemoteShards
        if is_local(dataset_dir):
            self._files = _LocalShards(_local_path(dataset_dir), self._names)
        else:
            self._files = _RemoteShards(dataset_dir, self._names)
        _check_sizes(self._files, shards, dataset_dir)
        self._verified = np.zeros(len(self.table), np.bool_)
        self._kept: OrderedDict[int, Blocks] = OrderedDict()
        self._kept_bytes, self._limit_bytes = 0, cache_mib << 20
        self._lock = Lock()
        self._num_loader_workers = num_loader_workers
        self._pool: ThreadPoolExecutor | None = None

    def get(self, chunks: Sequence[int]) -> dict[int, Blocks]:
        """These chunks, verified; missing ones are read by `num_loader_workers` threads at once.

        Raises:
            CorruptChunkError: a chunk is not what the manifest says.
            OSError: a chunk could not be read after several attempts.
        """
        with self._lock:
            found = {chunk: self._kept[chunk] for chunk in chunks if chunk in self._kept}
            for chunk in found:
                self._kept.move_to_end(chunk)
        missing = [chunk for chunk in chunks if chunk not in found]
        if len(missing) > 1:
            read = self._threads().map(self._read, missing)
        else:
            read = map(self._read, missing)
        for chunk, blocks in zip(missing, read, strict=True):
            found[chunk] = blocks
            self._keep(chunk, blocks)
        return found

    def close(self) -> None:
        """Let go of files, memory and threads."""
        self._kept.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_loader_workers, "millrace-chunks")
        return self._pool

    def _keep(self, chunk: int, blocks: Blocks) -> None:
        with self._lock:
            self._kept_bytes += self._cost(chunk) if chunk not in self._kept else 0
            self._kept[chunk] = blocks
            while len(self._kept) > OPEN_CHUNKS or self._kept_bytes > self._limit_bytes:
                self._kept_bytes -= self._cost(self._kept.popitem(last=False)[0])

    def _cost(self, chunk: int) -> int:
        """Bytes of memory that a kept chunk holds; the system owns the pages of a mapped one."""
        size = int(self.table.stop[chunk] - self.table.start[chunk])
        return 0 if isinstance(self._files, _LocalShards) else size

    def _read(self, chunk: int) -> Blocks:
        shard, start, stop = (
            int(column[chunk]) for column in (self.table.shard, self.table.start, self.table.stop)
        )
        where = f"{self._files.root}/{self._names[shard]}: chunk {chunk}, bytes {start} to {stop}"
        content: bytes | memoryview = b""
        if not self._verified[chunk] or isinstance(self._files, _RemoteShards):
            content = self._fetch(shard, start, stop, where)
            if zlib.crc32(content) != self.table.crc32[chunk]:  # once more: a bad transfer?
                content = self._fetch(shard, start, stop, where)
            found, expected = zlib.crc32(content), int(self.table.crc32[chunk])
            if found != expected:
                raise CorruptChunkError(
                    f"{where}: corrupt, crc32 {found:08x}, the manifest says {expected:08x}; "
                    "`python -m pipeline.verify` checks the whole dataset",
                    chunk,
                )
            self._verified[chunk] = True
        if isinstance(self._files, _LocalShards):
            content = self._files.view(shard)[start:stop]
        try:
            return parse_blocks(
                content,
                dtype=self.token_dtype,
                num_samples=int(self.table.samples[chunk]),
                num_tokens=int(self.table.tokens[chunk]),
            )
        except ValueError as error:
            raise CorruptChunkError(f"{where}: {error}", chunk) from None

    def _fetch(self, shard: int, start: int, stop: int, where: str) -> bytes:
        def attempt() -> bytes:
            content = self._files.fetch(shard, start, stop)
            if len(content) != stop - start:
                raise OSError(f"{where}: got only {len(content)} of {stop - start} bytes")
            return content

        return _retrying(attempt, what=where)


class _LocalShards:
    """Shards on a local file system: read once to verify, mapped to use."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self._names = names
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = Lock()

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for name in self._names:
            with suppress(FileNotFoundError):
                sizes[name] = (self.root / name).stat().st_size
        return sizes

    def fetch(self, shard: int, start: int, stop: int) -> bytes:
        # read, not the mapping: an input error under a mapping is a SIGBUS without a message
        with (self.root / self._names[shard]).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)

    def view(self, shard: int) -> memoryview:
        """The shard, mapped; the mapping ends with the last chunk that uses it."""
        with self._lock:
            if shard not in self._maps:
                if len(self._maps) >= 64:  # chunks in use keep their own reference
                    self._maps.pop(next(iter(self._maps)))
                with (self.root / self._names[shard]).open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return memoryview(self._maps[shard])


class _RemoteShards:
    """Shards behind a URL: every read is one range request."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self.root = url
        self._names = names

    def sizes(self) -> dict[str, int]:
        """Sizes from one listing; of shards that it does not tell, each for itself."""
        listed: dict[str, Any] = {}
        try:
            entries = self._fs.ls(self._path, detail=True)
            listed = {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in entries}
        except (OSError, NotImplementedError):
            logger.debug("%s: no listing, asking for each shard", self.root)  # as of plain HTTP
        sizes = {}
        for name in self._names:
            size = listed.get(name)
            with suppress(FileNotFoundError):
                sizes[name] = self._fs.size(f"{self._path}/{name}") if size is None else size
        return sizes

    def fetch(self, shard: int, start: int, stop: int) -> bytes:
        return bytes(self._fs.cat_file(f"{self._path}/{self._names[shard]}", start=start, end=stop))


def _local_path(dataset_dir: str) -> Path:
    return Path(fsspec.core.split_protocol(dataset_dir)[1])


def _check_sizes(
    files: _LocalShards | _RemoteShards, shards: Sequence[Shard], dataset_dir: str
) -> None:
    sizes = files.sizes()
    for shard in shards:
        found = sizes.get(shard.name)
        if found is None:
            raise ValueError(f"{dataset_dir}: shard {shard.name} of the manifest is missing")
        if found != shard.bytes:
            raise ValueError(
                f"{dataset_dir}: shard {shard.name} has {found} bytes, "
                f"the manifest says {shard.bytes}"
            )


def _retrying(attempt: Callable[[], bytes], *, what: str) -> bytes:
    """The result of `attempt`, tried again after each of `RETRY_SECONDS`."""
    pauses = iter(RETRY_SECONDS)
    while True:
        try:
            return attempt()
        except (FileNotFoundError, PermissionError, NotImplementedError):
            raise
        except Exception as error:  # every fsspec backend raises classes of its own
            pause = next(pauses, None)
            if pause is None:
                attempts = len(RETRY_SECONDS) + 1
                raise OSError(f"{what}: not readable in {attempts} attempts: {error}") from error
            logger.warning("%s: %s; trying again in %s s", what, error, pause)
            time.sleep(pause)
