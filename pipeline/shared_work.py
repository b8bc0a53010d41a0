"""The work folder between the machines of an engine that share no folder, for a dataset in a store:
what one of them leaves for the others are objects below `DATASET/.work`.

Where all of them see the work folder, it is that itself, and nothing here copies a byte.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipeline.exclude import Excluded, read_excluded, read_table
from pipeline.store import NUM_TRANSFERS, Store, transfers
from pipeline.urls import is_local
from pipeline.work import WorkFolder

AHEAD = 2 * NUM_TRANSFERS
"""Files that are under way while another is looked at."""


@contextmanager
def at_hand(work: WorkFolder, *needed: Path) -> Iterator[WorkFolder]:
    """The work folder on this machine: a temporary one, with what is needed of the files and
    folders of others; at the end all that was written goes to them, JSON last, which tells that the
    rest is whole.
    """
    if not work.shared:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        here = replace(work, path=folder)
        here.create()
        _fetch(work, here, needed)
        before = _states(here)
        yield here
        fresh = sorted(
            _states(here) - before, key=lambda state: (state[0].endswith(".json"), state)
        )
        store = Store.open(work.shared)
        for name, *_ in fresh:
            store.send(name, here.root / name)


def bring(work: WorkFolder, *wanted: Path) -> None:
    """Make files and folders of this machine's work folder what other machines left in them."""
    if work.shared:
        for path in wanted:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        _fetch(work, work, wanted)


def give(work: WorkFolder, path: Path) -> str:
    """Let others have a file; returns the place by which they read it."""
    if work.shared:
        Store.open(work.shared).send(_name(work, path), path)
    return place_of(work, path)


def drop(work: WorkFolder, path: Path) -> None:
    """Remove a file, if it is there, for others too."""
    path.unlink(missing_ok=True)
    if work.shared:
        Store.open(work.shared).remove([_name(work, path)])


def drop_all(work: WorkFolder, folder: Path) -> None:
    """Remove what others left in a folder."""
    store = Store.open(place_of(work, folder))
    store.remove(store.sizes())


def place_of(work: WorkFolder, path: Path) -> str:
    """By which workers name a file: its path, or its URL."""
    return f"{work.shared}/{_name(work, path)}" if work.shared else str(path)


def lies_in(work: WorkFolder, path: Path) -> bool:
    """Whether someone has left a file."""
    if not work.shared:
        return path.exists()
    return Store.open(work.shared).size(_name(work, path)) is not None


def read_place(place: str) -> bytes:
    """All of a file, by its place.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(place):
        return Path(place).read_bytes()
    folder, _, name = place.rpartition("/")
    return Store.open(folder).read(name)


def write_place(url: str, content: bytes) -> None:
    """A small file, by its place in a store."""
    folder, _, name = url.rpartition("/")
    Store.open(folder).send_bytes(name, content)


def read_lines(place: str) -> Iterator[bytes]:
    """A file line after line, by its place.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_local(place):
        with Path(place).open("rb") as file:
            yield from file
    else:
        yield from read_place(place).splitlines()


def excluded_at(place: str) -> Excluded:
    """The documents that are out, by the place of their file; from a store once in a process."""
    return read_excluded(Path(place)) if is_local(place) else Excluded(_table_of_store(place))


@dataclass(frozen=True)
class Files:
    """Files one after another, each on this machine until the next one is asked for."""

    work: WorkFolder
    """Of the build."""
    paths: Sequence[Path]
    """Of one folder."""

    def __iter__(self) -> Iterator[Path | None]:
        """None where there is no such file."""
        if not self.work.shared:
            yield from (path if path.exists() else None for path in self.paths)
        elif self.paths:
            yield from self._fetched()

    @classmethod
    def of(cls, work: WorkFolder, folder: Path) -> "Files":
        """All of a folder, by their names."""
        if not work.shared:
            return cls(work, sorted(folder.glob("[!.]*")))  # others may be written just now
        names = Store.open(place_of(work, folder)).sizes()
        return cls(work, [folder / name for name in sorted(names)])

    def _fetched(self) -> Iterator[Path | None]:
        store = Store.open(place_of(self.work, self.paths[0].parent))
        sizes = store.sizes()
        with tempfile.TemporaryDirectory(prefix="millrace-") as folder, transfers() as pool:

            def ask(path: Path) -> Future[Path | None]:
                return pool.submit(_fetch_one, store, path.name, sizes, Path(folder) / path.name)

            left = iter(self.paths)
            waiting = [ask(path) for path in islice(left, AHEAD)]
            while waiting:
                found = waiting.pop(0).result()
                yield found
                if found is not None:
                    found.unlink()
                waiting.extend(ask(path) for path in islice(left, 1))


def _fetch_one(store: Store, name: str, sizes: dict[str, int], path: Path) -> Path | None:
    if name not in sizes:
        return None
    store.fetch(name, path, sizes[name])
    return path


def _fetch(work: WorkFolder, into: WorkFolder, wanted: Sequence[Path]) -> None:
    for path in wanted:
        name = _name(work, path)
        if path.suffix:
            _copy(place_of(work, path), into.root / name)
        else:
            store, folder = Store.open(place_of(work, path)), into.root / name
            sizes = store.sizes()
            files = {one: folder / one for one in sizes}
            for parent in {folder, *(file.parent for file in files.values())}:
                parent.mkdir(parents=True, exist_ok=True)
            store.fetch_files(files, sizes)


@lru_cache(maxsize=1)
def _table_of_store(place: str) -> pa.RecordBatch:
    """As many shards ask as the corpus is large. Its file is mapped, and gone with the process."""
    with tempfile.TemporaryDirectory(prefix="millrace-") as temporary:
        path = Path(temporary) / "excluded.arrow"
        _copy(place, path)
        return read_table(path)


def _copy(url: str, path: Path) -> None:
    """One file, if it is there."""
    folder, _, name = url.rpartition("/")
    store = Store.open(folder)
    size = store.size(name)
    if size is not None:
        store.fetch(name, path, size)


def _states(work: WorkFolder) -> set[tuple[str, int, int]]:
    """Name, size and time of each file."""
    found = set()
    for folder, _, names in os.walk(work.root):
        for name in names:
            path = Path(folder) / name
            state = path.stat()
            found.add((_name(work, path), state.st_size, state.st_mtime_ns))
    return found


def _name(work: WorkFolder, path: Path) -> str:
    return path.relative_to(work.root).as_posix()
