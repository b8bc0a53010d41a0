"""A dataset in a local folder: finished shards and everything beside them move there by rename.

A publication that was killed is repeated.
"""

import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.lock import FILE_NAME as LOCK
from pipeline.manifest import FILE_NAME, Manifest, Shard, read_manifest, write_manifest
from pipeline.tar import index_path
from pipeline.work import FOLDER, WorkFolder, is_work_folder, read_json


class IntoFolder:
    """The dataset folder, which holds lock and work folder, too, until the manifest is written."""

    def __init__(self, folder: Path) -> None:
        self.name: Path | str = folder
        self.folder = folder
        self.work = WorkFolder(str(folder / FOLDER))

    def manifest(self) -> Manifest | None:
        return read_manifest(self.folder) if (self.folder / FILE_NAME).exists() else None

    def read_tree(self, name: str) -> Any:
        return read_json(self.folder / name)

    def tidy(self) -> None:
        shutil.rmtree(self.work.root, ignore_errors=True)

    def claim(self, request: str) -> None:
        """Only a killed build's folder may hold any files: the user's would be overwritten."""
        self.work = replace(self.work, request=request)
        if is_work_folder(self.work.root):
            return
        found = sorted(path.name for path in self.folder.iterdir() if path.name != LOCK)
        if self.work.root.is_dir() and not any(self.work.root.iterdir()):
            found.remove(FOLDER)  # killed before it made the parts
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise ValueError(
                f"{self.folder}: holds {found[0]}{more}, but no {FILE_NAME} and no unfinished "
                "build; choose another dataset_dir, or an empty folder"
            )

    def publish(self, shards: Collection[Shard], beside: Path, manifest: Manifest) -> None:
        self._remove_outdated({shard.name for shard in shards})
        for shard in shards:
            self._move(self.work.shards / shard.name)
        for path in sorted(beside.iterdir()):
            target = self.folder / path.name
            if path.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            path.replace(target)
        _sync(self.folder)
        write_manifest(manifest, self.folder)
        _sync(self.folder)

    def growth(self, config: PipelineConfig) -> float:
        return config.growth

    def leave(self) -> None:
        """It is the dataset's."""

    def _remove_outdated(self, current: set[str]) -> None:
        """Shards that an earlier build of another plan finished, and perhaps moved already."""
        for row in (self.work.root / "shards").rglob("*.json"):
            name = f"{row.stem}.tar"
            if name in current:
                continue
            for folder in (row.parent, self.folder):
                (folder / name).unlink(missing_ok=True)
                index_path(folder / name).unlink(missing_ok=True)
            row.unlink()
        for sidecar in self.folder.glob("*.wids.json"):  # of splits that may be no more
            sidecar.unlink()

    def _move(self, tar: Path) -> None:
        """The index first, so that a tar there has one; the row tells which was moved."""
        for path in (index_path(tar), tar):
            if path.exists():
                path.replace(self.folder / path.name)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
