"""A dataset as a folder of this machine, wherever it lies, for what reads every byte in any order.

Of one in a store the small files are fetched at once, a tar for as long as it is needed: before and
behind that a file of its size without content stands for it. So it takes the room of a few tars.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from configs.redact import redact
from pipeline.manifest import FILE_NAME, Manifest, read_manifest
from pipeline.store import START_PAUSES, Store
from pipeline.urls import is_local, local_path


@dataclass(frozen=True, slots=True)
class Mirror:
    """The folder, and the store behind it if there is one."""

    name: str
    """Of the dataset, as the user writes it."""
    folder: Path
    """With every file of the dataset."""
    store: Store | None = None
    """Where it lies, if not in the folder."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of objects in the store."""

    def manifest(self) -> Manifest:
        """Read and checked; what is wrong with it is told under the dataset's name."""
        try:
            return read_manifest(self.folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.folder), self.name)) from None

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """A tar with its content."""
        path = self.folder / name
        if self.store is None:
            yield path
            return
        self.store.fetch(name, path, self.sizes[name])
        try:
            yield path
        finally:
            _empty(path, self.sizes[name])

    def send(self, name: str) -> None:
        """Bring a small file that was written here to the store."""
        if self.store is not None:
            self.store.send(name, self.folder / name)


@contextmanager
def mirror_of(dataset: str | Path) -> Iterator[Mirror]:
    """The folder itself, or a temporary one (`TMPDIR`) of a dataset at a URL.

    Raises:
        FileNotFoundError: there is no complete dataset.
        ValueError: an object has a name that no file can have.
        StoreError: the store does not give it.
    """
    name = str(dataset)
    if is_local(name):
        folder = local_path(name)
        yield Mirror(str(folder), folder)
        return
    store = Store.open(name)
    sizes = store.sizes(START_PAUSES)
    if FILE_NAME not in sizes:
        raise FileNotFoundError(f"{redact(name)}: no {FILE_NAME}, so no complete dataset")
    with tempfile.TemporaryDirectory(prefix="millrace-") as temporary:
        mirror = Mirror(redact(name), Path(temporary), store, sizes)
        _fill(mirror, store)
        yield mirror


def _fill(mirror: Mirror, store: Store) -> None:
    small = {}
    for name, size in mirror.sizes.items():
        parts = PurePosixPath(name).parts
        if "/".join(parts) != name or ".." in parts or name.startswith("/"):
            raise ValueError(f"{mirror.name}: holds an object {name!a}, which names no file")
        path = mirror.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            _empty(path, size)
        else:
            small[name] = path
    store.fetch_files(small, mirror.sizes)


def _empty(path: Path, size: int) -> None:
    """A file of this size that takes no room."""
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
