"""Where a dataset lies: on a file system of this machine, or behind an fsspec URL.

Shards are read by byte range. Whatever a store answers wrongly or not at all is asked again.
"""

import logging
import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec

from pipeline.manifest import FILE_NAME, Manifest, Shard, parse_manifest, read_manifest

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses before reading again: a flaky store gets 16 s, a dead one stops the run soon."""

logger = logging.getLogger(__name__)


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
        text = retrying(lambda: bytes(fs.cat_file(f"{root}/{FILE_NAME}")), what=dataset_dir)
    except FileNotFoundError:
        raise FileNotFoundError(f"{dataset_dir}: no {FILE_NAME}, so no complete dataset") from None
    return parse_manifest(text.decode("utf-8"), where=f"{dataset_dir}/{FILE_NAME}")


def read_file(dataset_dir: str, name: str) -> bytes:
    """A small file of a local or remote dataset, whole."""
    if is_local(dataset_dir):
        return (_local_path(dataset_dir) / name).read_bytes()
    fs, root = fsspec.core.url_to_fs(dataset_dir)
    return retrying(lambda: bytes(fs.cat_file(f"{root}/{name}")), what=f"{dataset_dir}/{name}")


def open_shards(dataset_dir: str, shards: Sequence[Shard]) -> "LocalShards | RemoteShards":
    """The shards of a split, their sizes compared with the manifest.

    Raises:
        ValueError: a shard is missing or of another size than the manifest says.
    """
    names = [shard.name for shard in shards]
    files: LocalShards | RemoteShards
    if is_local(dataset_dir):
        files = LocalShards(_local_path(dataset_dir), names)
    else:
        files = RemoteShards(dataset_dir, names)
    _check_sizes(files, shards, dataset_dir)
    return files


def is_local(dataset_dir: str) -> bool:
    """Whether a dataset is on a file system of this machine."""
    return fsspec.core.split_protocol(dataset_dir)[0] in (None, "file", "local")


class LocalShards:
    """Shards on a local file system: read once to verify, mapped to use."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = names
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

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(url)
        self.root = url
        self.names = names

    def sizes(self) -> dict[str, int]:
        """Sizes from one listing; of shards that it does not tell, each for itself."""
        listed: dict[str, Any] = {}
        try:
            entries = self._fs.ls(self._path, detail=True)
            listed = {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in entries}
        except (OSError, NotImplementedError):
            logger.debug("%s: no listing, asking for each shard", self.root)  # as of plain HTTP
        sizes = {}
        for name in self.names:
            size = listed.get(name)
            with suppress(FileNotFoundError):
                sizes[name] = self._fs.size(f"{self._path}/{name}") if size is None else size
        return sizes

    def fetch(self, shard: int, start: int, stop: int) -> bytes:
        return bytes(self._fs.cat_file(f"{self._path}/{self.names[shard]}", start=start, end=stop))


def retrying(attempt: Callable[[], bytes], *, what: str) -> bytes:
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


def _local_path(dataset_dir: str) -> Path:
    return Path(fsspec.core.split_protocol(dataset_dir)[1])
