"""A dataset in a store: workers send each shard there when it is finished and remove it here, so
that the local disk needs no room for it; all else goes there at the end, the manifest last.

The first object is a mark, `upload.json`: of which build the others are. It is removed at the end.
"""

import hashlib
import json
import re
import secrets
import shutil
import socket
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import PipelineConfig
from pipeline.manifest import FILE_NAME, Manifest, Shard, parse_manifest, render_manifest
from pipeline.store import MARK, START_PAUSES, Store
from pipeline.tar import index_path
from pipeline.urls import StoreError
from pipeline.work import FOLDER, WorkFolder, read_json, write_json

WORK = f"{FOLDER}/"
"""Objects by which the machines of an engine help each other begin so."""
OUTDATED = re.compile(r"[a-z]+-\d{6}\.tar(\.idx)?|[a-z]+\.wids\.json|rejects/.*")
"""What a build of another plan may have left beside what a dataset has."""


class IntoStore:
    """The folder behind a URL, and the scratch folder in which a build for it works."""

    def __init__(self, url: str, scratch_dir: Path) -> None:
        """Nothing is asked yet.

        Raises:
            ValueError, StoreError: no such store, or its package is missing.
        """
        self.store = Store.open(url)
        self.name: Path | str = self.store.url
        self.folder = scratch_dir / scratch_name(self.store.url)
        self.work = WorkFolder(str(self.folder / FOLDER), store=self.store.url)
        self._sizes: dict[str, int] = {}

    def manifest(self) -> Manifest | None:
        self._sizes = self.store.sizes(START_PAUSES)
        if FILE_NAME not in self._sizes:
            return None
        text = self.store.read(FILE_NAME).decode("utf-8", "replace")
        return parse_manifest(text, where=f"{self.name}/{FILE_NAME}")

    def read_tree(self, name: str) -> Any:
        return _tree(self.store.read(name)) if name in self._sizes else None

    def tidy(self) -> None:
        self._remove_work(self._sizes)
        shutil.rmtree(self.work.root, ignore_errors=True)

    def claim(self, request: str) -> None:
        """Of equal requests all bytes are equal, so that a build goes on from another machine, too,
        where the scratch folder is lost; with two at once the later one has the place.
        """
        self.work = replace(self.work, request=request)
        if self._sizes:
            self._check_mark(request)
        self.work.root.mkdir(parents=True, exist_ok=True)
        if self._build() is None:
            write_json(self.work.claim, {"build": secrets.token_hex(8)})
        mark = {
            "build": self._build(),
            "request": request,
            "machine": socket.gethostname(),
            "scratch": str(self.folder),
        }
        self.store.send_bytes(MARK, json.dumps(mark).encode())

    def publish(self, shards: Collection[Shard], beside: Path, manifest: Manifest) -> None:
        self._check_claim()
        sizes = self.store.sizes()
        tars = _check_shards(self.store, shards, sizes)
        paths = [path for path in sorted(beside.rglob("*")) if path.is_file()]
        files = {path.relative_to(beside).as_posix(): path for path in paths}
        self.store.send_files(files, Console(stderr=True))
        left = {name for name in sizes if OUTDATED.fullmatch(name)} - tars - files.keys()
        self.store.remove(left)
        self.store.send_bytes(FILE_NAME, render_manifest(manifest).encode())
        self._remove_work(self.store.sizes())

    def growth(self, config: PipelineConfig) -> float:
        """Spill files stay to the end: half of it and places of documents; tars pass by."""
        return config.growth * 0.75

    def leave(self) -> None:
        with suppress(OSError):  # unfinished work is in it, or another build works beside it
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _remove_work(self, names: Collection[str]) -> None:
        self.store.remove([name for name in names if name.startswith(WORK)])
        self.store.remove([MARK] if MARK in names else [])

    def _build(self) -> str | None:
        tree = read_json(self.work.claim)
        return None if tree is None else str(tree["build"])

    def _check_mark(self, request: str) -> None:
        mark = self.read_tree(MARK) or {}
        is_ours = "build" in mark and mark["build"] == self._build()
        if is_ours or mark.get("request") == request:
            return
        advice = "choose another dataset_dir, or delete what is there"
        if "build" in mark:
            raise ValueError(
                f"{self.name}: holds an unfinished build of another config or corpus, begun on "
                f"{mark.get('machine')} in {mark.get('scratch')}; finish it there, {advice}"
            )
        found = min(self._sizes)
        more = f" and {len(self._sizes) - 1} more" if len(self._sizes) > 1 else ""
        raise ValueError(
            f"{self.name}: holds {found}{more}, but no {FILE_NAME} and no unfinished build; "
            f"{advice}"
        )

    def _check_claim(self) -> None:
        """No two builds publish over one another."""
        mark = {} if self.store.size(MARK) is None else _tree(self.store.read(MARK))
        if mark.get("build") != self._build():
            raise ValueError(
                f"{self.name}: another build has taken this place"
                + (f", on {mark['machine']} in {mark['scratch']}" if "machine" in mark else "")
                + "; wait for it, and run the same command again"
            )


def bring_shard(url: str, tar: Path) -> None:
    """Send a finished tar, its index first, so that a tar there has one; then it is gone here."""
    store = Store.open(url)
    for path in (index_path(tar), tar):
        store.send(path.name, path)
        path.unlink()


def lies_there(url: str, shard: Shard) -> bool:
    """Whether the store has a tar in its size, and an index."""
    store = Store.open(url)
    index = index_path(Path(shard.name)).name
    return store.size(shard.name) == shard.bytes and store.size(index) is not None


def scratch_name(url: str) -> str:
    """A folder for each URL: s3://bucket/web -> web-b1946ac9."""
    last = re.sub(r"[^A-Za-z0-9_.-]", "_", url.rsplit("/", 1)[-1])
    return f"{last}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _check_shards(store: Store, shards: Collection[Shard], sizes: dict[str, int]) -> set[str]:
    """The names of all shards and indexes, which the store has to have."""
    wanted = {shard.name: shard.bytes for shard in shards}
    for name, size in wanted.items():
        index = index_path(Path(name)).name
        if sizes.get(name) != size or index not in sizes:
            raise StoreError(
                f"{store.url}/{name}: was sent with {size:,} bytes and its index, and is not there "
                f"any more (found {sizes.get(name, 0):,} bytes); run the same command again"
            )
    return wanted.keys() | {index_path(Path(name)).name for name in wanted}


def _tree(content: bytes) -> dict[str, Any]:
    """An object of JSON; empty where it is damaged or none."""
    try:
        tree = json.loads(content)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}
