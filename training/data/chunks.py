"""Chunks of a split, read and checked: local shards by mmap, remote ones by range requests.

A chunk is read whole and compared with its crc32 from the manifest; only then are its samples
used. A transient error is tried again; bytes that stay wrong are a `CorruptChunkError` with the
shard, the chunk and the byte range.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.manifest import Shard
from training.data.chunk_cache import ChunkCache, chunk_name
from training.data.fetchers import Fetchers
from training.data.shards import LocalShards, open_shards
from training.data.store import StoreConfig
from training.data.traffic import Traffic

Content = bytes | memoryview
Parsed = TypeVar("Parsed")
Parse = Callable[[Content, int, int], Parsed]
"""What makes samples of the bytes of a chunk, and of the samples and tokens that it must hold; a
ValueError says that they are not what the manifest says."""

NUM_READS = 3
"""Of bytes that are not what the manifest says: the fault may have been one of the way."""
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
        store: StoreConfig | None = None,
    ) -> None:
        """Open the shards.

        Raises:
            ValueError: a shard is missing or of another size than the manifest says, or there is
                no such cache.
            OSError: the store does not answer.
        """
        self.table = ChunkTable.of(shards)
        self.traffic = Traffic()
        self.spare_bytes = cache_mib << 19
        """Memory for chunks that are read ahead: of `cache_mib` what those in use leave."""
        self._parse = parse
        store = store or StoreConfig()
        self._files = open_shards(dataset_dir, shards, store, self.traffic)
        self.is_remote = not isinstance(self._files, LocalShards)
        self._cache: ChunkCache | None = None
        if self.is_remote and store.cache_dir:
            self._cache = self._open_cache(store)
        self._hashes = [shard.sha256 for shard in shards]
        self._verified = np.zeros(len(self.table), np.bool_)
        self._kept: OrderedDict[int, Parsed] = OrderedDict()
        self._kept_bytes, self._limit_bytes = 0, cache_mib << 20
        self._pending: dict[int, Future[Parsed]] = {}
        self._lock = Lock()
        num_threads = store.num_requests if self.is_remote else num_loader_workers
        self._fetchers = Fetchers(num_threads)

    def get(self, chunks: Sequence[int]) -> dict[int, Parsed]:
        """These chunks, verified; missing ones are read by several threads at once.

        Raises:
            CorruptChunkError: a chunk is not what the manifest says.
            OSError: a chunk could not be read for too long.
        """
        found: dict[int, Parsed] = {}
        with self._lock:
            for chunk in chunks:
                if chunk in self._kept:
                    self._kept.move_to_end(chunk)
                    found[chunk] = self._kept[chunk]
            awaited = {chunk: self._request(chunk) for chunk in chunks if chunk not in found}
        for chunk, future in awaited.items():
            try:
                found[chunk] = future.result()
            finally:
                with self._lock:
                    self._pending.pop(chunk, None)
            self._keep(chunk, found[chunk])
        return found

    def expect(self, chunks: Sequence[int]) -> None:
        """Begin to read those of a remote dataset that are not here, as far as there is memory."""
        if not self.is_remote:
            return
        with self._lock:
            ahead = sum(map(self._cost, self._pending))
            for chunk in chunks:
                if chunk in self._kept or chunk in self._pending:
                    continue
                ahead += self._cost(chunk)
                if ahead > self.spare_bytes:
                    return
                self._request(chunk)

    def shard_of(self, chunk: int) -> str:
        """The name of the shard that holds a chunk."""
        return self._files.names[int(self.table.shard[chunk])]

    def close(self) -> None:
        """Let go of files, memory and threads."""
        self._files.patience.close()
        self._fetchers.close()
        self._pending.clear()
        self._kept.clear()

    def _open_cache(self, store: StoreConfig) -> ChunkCache:
        limit, largest = (
            int(store.cache_gib * 2**30),
            int((self.table.stop - self.table.start).max()),
        )
        if limit < 2 * largest:
            raise ValueError(
                f"data.store.cache_gib={store.cache_gib:g} is too little: a chunk has "
                f"{largest / 2**20:.1f} MiB; leave room for all that a node reads at once"
            )
        return ChunkCache(store.cache_dir, limit, self.traffic)

    def _request(self, chunk: int) -> "Future[Parsed]":
        """What is read of a chunk, or will be; asked for once, until somebody takes it."""
        if chunk not in self._pending:
            self._pending[chunk] = self._fetchers.submit(self._read, chunk)
        return self._pending[chunk]

    def _keep(self, chunk: int, parsed: Parsed) -> None:
        with self._lock:
            self._kept_bytes += self._cost(chunk) if chunk not in self._kept else 0
            self._kept[chunk] = parsed
            while len(self._kept) > OPEN_CHUNKS or self._kept_bytes > self._limit_bytes:
                self._kept_bytes -= self._cost(self._kept.popitem(last=False)[0])

    def _cost(self, chunk: int) -> int:
        """Bytes of memory that a kept chunk holds; the system owns the pages of a mapped one."""
        return int(self.table.stop[chunk] - self.table.start[chunk]) if self.is_remote else 0

    def _read(self, chunk: int) -> Parsed:
        content: Content = b""
        if self._cache is not None:
            content = self._cache.get(
                self._name(chunk),
                lambda: self._fetch(chunk),
                is_good=lambda found: self._is_good(chunk, found),
            )
        elif self.is_remote or not self._verified[chunk]:
            content = self._fetch(chunk)
        shard, start, stop = self._place(chunk)
        if isinstance(self._files, LocalShards):
            self._verified[chunk] = True
            content = self._files.view(shard)[start:stop]
        try:
            samples, tokens = int(self.table.samples[chunk]), int(self.table.tokens[chunk])
            return self._parse(content, samples, tokens)
        except ValueError as error:
            raise CorruptChunkError(f"{self._where(chunk)}: {error}", chunk) from None

    def _fetch(self, chunk: int) -> bytes:
        """The bytes of a chunk, which are those that were written."""
        shard, start, stop = self._place(chunk)

        def attempt() -> bytes:
            content = self._files.fetch(shard, start, stop)
            if len(content) != stop - start:
                raise OSError(f"got only {len(content)} of {stop - start} bytes")
            return content

        content = b""
        for number in range(NUM_READS):
            content = self._files.patience.read(attempt, what=self._where(chunk))
            self.traffic.count(num_retries=int(number > 0))
            if self._is_good(chunk, content):
                self.traffic.count(num_chunks=1, num_bytes=len(content))
                return content
        found, expected = zlib.crc32(content), int(self.table.crc32[chunk])
        raise CorruptChunkError(
            f"{self._where(chunk)}: corrupt, crc32 {found:08x}, the manifest says {expected:08x}; "
            "`python -m pipeline.verify` checks the whole dataset",
            chunk,
        )

    def _is_good(self, chunk: int, content: bytes) -> bool:
        _, start, stop = self._place(chunk)
        return len(content) == stop - start and zlib.crc32(content) == self.table.crc32[chunk]

    def _place(self, chunk: int) -> tuple[int, int, int]:
        """Its shard, first byte and the byte behind its last."""
        table = self.table
        return int(table.shard[chunk]), int(table.start[chunk]), int(table.stop[chunk])

    def _name(self, chunk: int) -> str:
        shard, start, stop = self._place(chunk)
        return chunk_name(self._hashes[shard], start, stop)

    def _where(self, chunk: int) -> str:
        shard, start, stop = self._place(chunk)
        name = f"{self._files.root}/{self._files.names[shard]}"
        return f"{name}: chunk {chunk}, bytes {start} to {stop}"
