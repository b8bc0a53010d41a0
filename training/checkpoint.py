"""Checkpoints on the disk: what one holds, which is the last good one, which of them stay.

`RUN/checkpoints/step-00001000/` holds DeepSpeed's files, a file of each rank with its random state
and one with the layout of its weights, `state.json` with the integers of the run, the config, and
last `checkpoint.json` with size and sha256 of all of them. `training/saving.py` writes it. After a
kill at any moment the newest complete checkpoint is found; a damaged one is named and passed over.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import distributed

SUMMARY = "checkpoint.json"
STATE = "state.json"
CONFIG = "config.yaml"
NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `checkpoints`."""

    every_steps: int = 500
    """Write a checkpoint after so many steps, and at the end of the run; 0 only at the end."""
    keep: int = 2
    """Keep so many of the newest checkpoints; 0 keeps all."""
    keep_every_steps: int = 0
    """Keep those at multiples of so many steps, too, for ever; 0 none. A multiple of `every_steps`.
    """
    asynchronous: bool = False
    """Training waits only for a copy of its state in host memory, which a thread writes to the
    disk: as much memory as the checkpoint has bytes, on a GPU pinned.
    """

    def __post_init__(self) -> None:
        """Refuse negative numbers, and steps that have no checkpoint to keep."""
        for name in ("every_steps", "keep", "keep_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")
        if self.keep_every_steps and (
            not self.every_steps or self.keep_every_steps % self.every_steps
        ):
            raise ValueError(
                f"keep_every_steps is {self.keep_every_steps}; it must be a multiple of "
                f"every_steps, which is {self.every_steps}, or 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The integers that a run continues from; the same on every rank."""

    step: int
    """Optimizer steps done, skipped ones included."""
    samples_seen: int
    """Samples consumed by them, or left out by rollbacks: the whole state of the data."""
    skipped_steps: int
    """Steps that the optimizer did not take."""
    world_size: int
    """Ranks that wrote the checkpoint."""
    zero_stage: int
    """ZeRO stage that wrote it."""
    data_order: str
    """All that the order of samples depends on: dataset, sequence length, seed."""

    @property
    def where(self) -> str:
        """World size and ZeRO stage in words."""
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"{ranks} at ZeRO stage {self.zero_stage}"


def remove_old(newest: Path, *, keep: int, keep_every_steps: int = 0) -> None:
    """Remove all but the last `keep` checkpoints up to `newest`, just written; 0 keeps all.

    Those at multiples of `keep_every_steps` stay. What lies beyond `newest` is damaged, since the
    run resumed before it, and must not count.
    """
    if keep and distributed.is_rank_zero():
        folders = list_checkpoints(newest.parent)
        for folder in folders[: folders.index(newest) + 1][:-keep]:
            if not (keep_every_steps and step_of(folder) % keep_every_steps == 0):
                shutil.rmtree(folder)


def find_last_good(checkpoints_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all have their size and sha256; others go to `warn`.

    Every rank calls it and gets the same answer.
    """
    for folder in reversed(distributed.broadcast(list_checkpoints(checkpoints_dir))):
        faults = find_faults(folder)
        if not faults:
            return Path(folder)
        if distributed.is_rank_zero():
            warn(f"{folder}: damaged, passed over: {'; '.join(faults)}")
    return None


def find_faults(checkpoint_dir: Path) -> list[str]:
    """What is wrong with the files of a checkpoint; every rank calls it and hashes its share."""
    return [fault for part in distributed.gather(_verify_part(checkpoint_dir)) for fault in part]


def read_state(checkpoint_dir: Path) -> RunState:
    """The integers of a checkpoint."""
    return RunState(**json.loads((checkpoint_dir / STATE).read_text()))


def folder_name(step: int) -> str:
    """Of the checkpoint behind a step."""
    return f"step-{step:08d}"


def describe_file(path: Path) -> dict[str, Any]:
    """What the summary says of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first, not verified."""
    found = checkpoints_dir.glob("step-*")
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint_dir: Path) -> int:
    """The step behind which a checkpoint was taken."""
    return int(checkpoint_dir.name.removeprefix("step-"))


def _verify_part(folder: Path) -> list[str]:
    """Faults of this rank's share of the files: a large checkpoint is hashed by all ranks."""
    try:
        files = json.loads((folder / SUMMARY).read_text())["files"]
        expected = {name: (files[name]["bytes"], files[name]["sha256"]) for name in sorted(files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{SUMMARY}: damaged ({error!r})"] if distributed.is_rank_zero() else []
    faults = []
    for name in list(expected)[distributed.rank() :: distributed.world_size()]:
        path, (size, sha256) = folder / name, expected[name]
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{name} has {path.stat().st_size} of {size} bytes")
        elif describe_file(path)["sha256"] != sha256:
            faults.append(f"{name} has another sha256 than written")
    return faults
