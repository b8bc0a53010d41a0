"""Chunks of a split, read and checked: local shards by mmap, remote ones by range requests.

A chunk is read whole once and compared with its crc32 from the manifest; only then are its samples
used. A transient error is tried again; bytes that stay wrong are a `CorruptChunkError` with the
shard, the chunk and the byte range.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.manifest import Shard
from training.data.shards import LocalShards, open_shards, retrying

Content = bytes | memoryview
Parsed = TypeVar("Parsed")
Parse = Callable[[Content, int, int], Parsed]
"""What makes samples of the bytes of a chunk, and of the samples and tokens that it must hold; a
ValueError says that they are not what the manifest says."""

OPEN_CHUNKS = 512
"""Chunks kept open; each may hold a file descriptor, and 1024 is a usual limit of a process."""


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


class ChunkReader(Generic[Parsed]):
    """Reads the chunks of a split; keeps remote ones in memory up to `cache_mib`.

    Opening compares the size of every shard with the manifest.
    """

    def __init__(
        self,
        dataset_dir: str,
        shards: Sequence[Shard],
        *,
        parse: Parse[Parsed],
        cache_mib: int = 2048,
        num_loader_workers: int = 2,
    ) -> None:
        """Open the shards.

        Raises:
            ValueError: a shard is missing or of another size than the manifest says.
        """
        self.table = ChunkTable.of(shards)
        self._parse = parse
        self._files = open_shards(dataset_dir, shards)
        self._verified = np.zeros(len(self.table), np.bool_)
        self._kept: OrderedDict[int, Parsed] = OrderedDict()
        self._kept_bytes, self._limit_bytes = 0, cache_mib << 20
        self._lock = Lock()
        self._num_loader_workers = num_loader_workers
        self._pool: ThreadPoolExecutor | None = None

    def get(self, chunks: Sequence[int]) -> dict[int, Parsed]:
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
        for chunk, parsed in zip(missing, read, strict=True):
            found[chunk] = parsed
            self._keep(chunk, parsed)
        return found

    def shard_of(self, chunk: int) -> str:
        """The name of the shard that holds a chunk."""
        return self._files.names[int(self.table.shard[chunk])]

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

    def _keep(self, chunk: int, parsed: Parsed) -> None:
        with self._lock:
            self._kept_bytes += self._cost(chunk) if chunk not in self._kept else 0
            self._kept[chunk] = parsed
            while len(self._kept) > OPEN_CHUNKS or self._kept_bytes > self._limit_bytes:
                self._kept_bytes -= self._cost(self._kept.popitem(last=False)[0])

    def _cost(self, chunk: int) -> int:
        """Bytes of memory that a kept chunk holds; the system owns the pages of a mapped one."""
        size = int(self.table.stop[chunk] - self.table.start[chunk])
        return 0 if isinstance(self._files, LocalShards) else size

    def _read(self, chunk: int) -> Parsed:
        shard, start, stop = (
            int(column[chunk]) for column in (self.table.shard, self.table.start, self.table.stop)
        )
        where = (
            f"{self._files.root}/{self._files.names[shard]}: chunk {chunk}, bytes {start} to {stop}"
        )
        content: Content = b""
        if not self._verified[chunk] or not isinstance(self._files, LocalShards):
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
        if isinstance(self._files, LocalShards):
            content = self._files.view(shard)[start:stop]
        try:
            samples, tokens = int(self.table.samples[chunk]), int(self.table.tokens[chunk])
            return self._parse(content, samples, tokens)
        except ValueError as error:
            raise CorruptChunkError(f"{where}: {error}", chunk) from None

    def _fetch(self, shard: int, start: int, stop: int, where: str) -> bytes:
        def attempt() -> bytes:
            content = self._files.fetch(shard, start, stop)
            if len(content) != stop - start:
                raise OSError(f"{where}: got only {len(content)} of {stop - start} bytes")
            return content

        return retrying(attempt, what=where)
