"""Where a dataset comes to lie: in a local folder, or in a store by way of a scratch folder."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from configs.redact import redact
from pipeline.config import PipelineConfig
from pipeline.into_folder import IntoFolder
from pipeline.into_store import IntoStore
from pipeline.manifest import Manifest, Shard
from pipeline.urls import is_local, local_path
from pipeline.work import WorkFolder


class Destination(Protocol):
    """What a build has to know of the place of its dataset."""

    name: Path | str
    """As the user writes it."""
    folder: Path
    """Local, of the build alone: the lock and the work folder lie in it."""
    work: WorkFolder
    """Of the build."""

    def manifest(self) -> Manifest | None:
        """Of the dataset that lies there already, if one does."""
        ...

    def read_tree(self, name: str) -> Any:
        """A file of JSON beside it, or None where it is damaged or missing."""
        ...

    def tidy(self) -> None:
        """Remove what a build left beside its manifest that was killed in its last moment."""
        ...

    def claim(self, request: str) -> None:
        """Take the place for a build, if nothing lies there but an unfinished build of this one.

        Raises:
            ValueError: something else does.
        """
        ...

    def publish(self, shards: Collection[Shard], beside: Path, manifest: Manifest) -> None:
        """Bring the finished shards there, then all that lies in the folder `beside`, then the
        manifest; what earlier builds left of other plans goes.
        """
        ...

    def growth(self, config: PipelineConfig) -> float:
        """Bytes written to the local disk for a byte of the corpus, at most, about."""
        ...

    def leave(self) -> None:
        """Remove the folder, if it is of builds alone and holds nothing that a rerun could use;
        behind the release of the lock.
        """
        ...


def destination_of(config: PipelineConfig) -> Destination:
    """The place that a config names.

    Raises:
        ValueError, StoreError: no such store, or its package is missing.
    """
    if is_local(config.dataset_dir):
        return IntoFolder(local_path(config.dataset_dir).resolve())
    return IntoStore(config.dataset_dir, Path(config.scratch_dir).resolve())


def check_apart(destination: Destination, corpus: Sequence[str]) -> None:
    """Refuse a dataset inside of the corpus, and a scratch folder.

    Raises:
        ValueError: a folder of the corpus holds it.
    """
    places = {"dataset_dir": destination.name, "scratch_dir": destination.folder}
    for key, place in places.items():
        for folder in corpus:
            if _lies_in(place, folder):
                raise ValueError(
                    f"{key}: {place} lies in the folder {redact(folder)} of the corpus, which "
                    f"would read its own dataset; choose another {key}"
                )


def _lies_in(place: Path | str, folder: str) -> bool:
    if isinstance(place, Path):
        return Path(folder).is_dir() and place.is_relative_to(Path(folder).resolve())
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")
