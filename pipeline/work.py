"""The work folder of a build, `DATASET/.work`, or `SCRATCH/.work` of a dataset in a store: what is
finished, kept until publication.

Everything in it is complete or absent: written under a temporary name, synced, renamed.
"""

import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.machine import writing

FOLDER = ".work"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Names of everything in the work folder; travels to Beam workers."""

    path: str
    """The folder itself, absolute."""
    store: str = ""
    """URL of a dataset that is built into a store: finished tars go there at once."""
    shared: str = ""
    """URL below which machines of an engine find each other's files; "" where they share `path`."""
    request: str = ""
    """Fingerprint of what the build was asked for: an engine's job that outlived its build, of
    another config, finishes its shards in another folder."""

    @property
    def root(self) -> Path:
        return Path(self.path)

    @property
    def portions(self) -> Path:
        """A completion record for each portion that was read."""
        return self.root / "portions"

    @property
    def spills(self) -> Path:
        """Sorted spill files of encoded documents."""
        return self.root / "spills"

    @property
    def shards(self) -> Path:
        """Finished tars, their indexes, and a row file for each."""
        return self.root / "shards" / self.request[:16]

    @property
    def rejects(self) -> Path:
        """A folder for each stage, in it a gzip member for each portion and shard."""
        return self.root / "rejects"

    @property
    def sketches(self) -> Path:
        """What each portion left of its documents for a comparison of all."""
        return self.root / "sketches"

    @property
    def pairs(self) -> Path:
        """What is close in these sketches, a file for each group that was compared."""
        return self.root / "pairs"

    @property
    def compares(self) -> Path:
        """What came of this comparison; of each request by itself, as `shards`."""
        return self.root / "compares" / self.request[:16]

    @property
    def excluded(self) -> Path:
        """The documents that this comparison found to be out."""
        return self.compares / "excluded.arrow"

    @property
    def comparison(self) -> Path:
        """Of which portions it was, and what the report says: written at its end, so that a rerun
        with the same ones does not repeat it.
        """
        return self.compares / "comparison.json"

    @property
    def samples(self) -> Path:
        """What each portion left for a tokenizer that is being made."""
        return self.root / "samples"

    @property
    def progress(self) -> Path:
        """A counter file for each worker process."""
        return self.root / "progress"

    @property
    def publication(self) -> Path:
        """What will lie beside the shards."""
        return self.root / "publish"

    @property
    def classes(self) -> Path:
        """Names of the classes of images, in order of class index; written with the plan."""
        return self.root / "classes.json"

    @property
    def leaks(self) -> Path:
        """Weight that training lost to validation, where that emptied a shard."""
        return self.root / "leaks.json"

    @property
    def seconds(self) -> Path:
        """What each stage took so far."""
        return self.root / "seconds.json"

    @property
    def claim(self) -> Path:
        """The name by which a store knows this build."""
        return self.root / "claim.json"

    @property
    def error_log(self) -> Path:
        """The traceback of the last failure."""
        return self.root / "error.log"

    def between_machines(self) -> "WorkFolder":
        """That of an engine's build into a store, whose machines share no folder."""
        return replace(self, shared=f"{self.store}/{FOLDER}/{self.request[:16]}")

    def portion(self, index: int) -> Path:
        """Completion record of a portion."""
        return self.portions / f"{index:06d}.json"

    def sketch(self, index: int) -> Path:
        """What a portion left."""
        return self.sketches / f"{index:06d}.arrow"

    def shard_row(self, name: str) -> Path:
        """Row file of a finished shard."""
        return self.shards / f"{name}.json"

    def create(self) -> None:
        """Make the folder and its parts, and drop what a killed build was in the middle of."""
        folders = (self.portions, self.spills, self.sketches, self.pairs, self.compares)
        for folder in (*folders, self.shards, self.rejects, self.progress):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.publication, ignore_errors=True)
        for unfinished in self.root.rglob(".*"):
            unfinished.unlink(missing_ok=True)  # a job that goes on may have finished it


def is_work_folder(path: Path) -> bool:
    """Whether a build has begun here; `portions` is the first part that it makes."""
    return (path / "portions").is_dir()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file complete or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path, temporary):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_json(path: Path, tree: Any) -> None:
    """Write a tree as JSON, complete or not at all."""
    write_atomic(path, json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode())


def read_json(path: Path) -> Any:
    """Read a tree, or None where there is no file or a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
