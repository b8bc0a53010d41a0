"""Where a dataset lies: on a file system of this machine, or behind an fsspec URL.

Shards are read by byte range. Whatever a store answers wrongly or not at all is asked again.
"""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pipeline.manifest import FILE_NAME, Manifest, Shard, parse_manifest, read_manifest
from pipeline.urls import is_local, local_path
from training.data.patience import Patience
from training.data.store import Store, StoreConfig
from training.data.traffic import Traffic

DISK_SECONDS = 16.0
"""A disk that fails for longer will not be better soon."""
START_SECONDS = 30.0
"""Before a split is open: a store that is down, or was never there, is told soon."""


def load_manifest(dataset_dir: str) -> Manifest:
    """The manifest of a local or remote dataset.

    Raises:
        FileNotFoundError: there is no complete dataset.
        ValueError: the manifest is damaged, or the URL is none.
        OSError: the store does not give it.
    """
    if is_local(dataset_dir):
        return read_manifest(local_path(dataset_dir))
    try:
        text = read_file(dataset_dir, FILE_NAME)
    except FileNotFoundError as error:
        said = str(error).partition("no such file or folder")[2]
        raise FileNotFoundError(
            f"{dataset_dir}: no {FILE_NAME}, so no complete dataset{said}"
        ) from None
    return parse_manifest(text.decode("utf-8"), where=f"{dataset_dir}/{FILE_NAME}")


def read_file(dataset_dir: str, name: str) -> bytes:
    """A small file of a local or remote dataset, whole."""
    if is_local(dataset_dir):
        return (local_path(dataset_dir) / name).read_bytes()
    store = Store(dataset_dir, StoreConfig())
    patience = Patience(START_SECONDS)
    return patience.read(lambda: store.read(name), what=f"{dataset_dir}/{name}")


def open_shards(
    dataset_dir: str, shards: Sequence[Shard], config: StoreConfig, traffic: Traffic
) -> "LocalShards | RemoteShards":
    """The shards of a split, their sizes compared with the manifest.

    Raises:
        ValueError: a shard is missing or of another size than the manifest says.
        OSError: the store does not say.
    """
    names = [shard.name for shard in shards]
    files: LocalShards | RemoteShards
    if is_local(dataset_dir):
        files = LocalShards(local_path(dataset_dir), names)
    else:
        files = RemoteShards(dataset_dir, names, config, traffic)
    _check_sizes(files, shards, dataset_dir)
    return files


class LocalShards:
    """Shards on a local file system: read once to verify, mapped to use."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = names
        self.patience = Patience(DISK_SECONDS)
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = Lock()

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for name in self.names:
            with suppress(FileNotFoundError):
                sizes[name] = (self.root / name).stat().st_size
        return sizes

    def fetch(self, shard: int, start: int, stop: int) -> bytes:
        # read, not the mapping: an input error under a mapping is a SIGBUS without a message
        with (self.root / self.names[shard]).open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(stop - start)

    def view(self, shard: int) -> memoryview:
        """The shard, mapped; the mapping ends with the last chunk that uses it."""
        with self._lock:
            if shard not in self._maps:
                if len(self._maps) >= 64:  # chunks in use keep their own reference
                    self._maps.pop(next(iter(self._maps)))
                with (self.root / self.names[shard]).open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return memoryview(self._maps[shard])


class RemoteShards:
    """Shards behind a URL: every read is one range request."""

    def __init__(
        self, url: str, names: Sequence[str], config: StoreConfig, traffic: Traffic
    ) -> None:
        self.root = url
        self.names = names
        self.patience = Patience(config.retry_seconds, traffic)
        self._store = Store(url, config)
        self._num_requests = config.num_requests

    def sizes(self) -> dict[str, int]:
        """Sizes from one listing; of shards that it does not tell, each for itself."""
        listed: dict[str, int | None] = {}
        patience = Patience(START_SECONDS)
        with suppress(OSError, ValueError, NotImplementedError):  # as of plain HTTP
            listed = patience.read(self._store.sizes, what=self.root)

        def ask(name: str) -> int | None:
            with suppress(FileNotFoundError):
                where = f"{self.root}/{name}"
                return patience.read(lambda: self._store.size(name), what=where)
            return None

        unknown = [name for name in self.names if listed.get(name) is None]
        with ThreadPoolExecutor(self._num_requests) as pool:
            listed |= dict(zip(unknown, pool.map(ask, unknown), strict=True))
        return {name: size for name, size in listed.items() if size is not None}

    def fetch(self, shard: int, start: int, stop: int) -> bytes:
        return self._store.read(self.names[shard], start, stop)


def _check_sizes(
    files: LocalShards | RemoteShards, shards: Sequence[Shard], dataset_dir: str
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
