"""Checkpoints: atomic and verified.

`RUN/checkpoints/step-00001000/` holds DeepSpeed's files, a file of each rank with its random state,
`state.json` with the integers of the run, the config, and last `checkpoint.json` with size and
sha256 of all of them. All of it is written under a temporary name and renamed; then `latest` is
renamed over. After a kill at any moment the newest complete checkpoint is found, and a damaged one
is named and passed over.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from training import distributed

Result = TypeVar("Result")

SUMMARY = "checkpoint.json"
STATE = "state.json"
CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `checkpoints`."""

    every_steps: int = 500
    """Write a checkpoint after so many steps, and at the end of the run; 0 only at the end."""
    keep: int = 2
    """Keep so many of the newest checkpoints; 0 keeps all."""

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        for name in ("every_steps", "keep"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The integers that a run continues from; the same on every rank."""

    step: int
    """Optimizer steps done, skipped ones included."""
    samples_seen: int
    """Samples consumed by them: the whole state of the data."""
    skipped_steps: int
    """Steps that the optimizer did not take."""
    world_size: int
    """Ranks that wrote the checkpoint."""
    zero_stage: int
    """ZeRO stage that wrote it."""
    data_order: str
    """All that the order of samples depends on: dataset, sequence length, seed."""


def save_checkpoint(
    checkpoints_dir: Path, state: RunState, write: Callable[[Path], None], config_yaml: str
) -> Path:
    """Write a checkpoint; every rank calls it and `write(folder)` writes the engine's part.

    Raises:
        OSError: no space or no permission on some rank; raised on every rank, and whatever was
            saved before is untouched.
    """
    final = checkpoints_dir / f"step-{state.step:08d}"
    temporary = checkpoints_dir / f".tmp-{final.name}"
    try:
        _together(lambda: _make_room(temporary))
        _together(lambda: _write_files(temporary, state, write, config_yaml))
        summary = _gather_rows(_together(lambda: _hash_share(temporary)))
        _together(lambda: _publish(temporary, final, summary))
    except OSError as error:
        free_gib = _free_gib(checkpoints_dir)
        _drop(temporary)
        raise OSError(
            f"checkpoint of step {state.step} not written to {temporary}: {error}; "
            f"{free_gib:.1f} GiB were free there; the checkpoints before it are untouched"
        ) from error
    return final


def remove_old(newest: Path, *, keep: int) -> None:
    """Remove all but the last `keep` checkpoints up to `newest`, just written; 0 keeps all.

    What lies beyond it is damaged, since the run resumed before it, and must not count.
    """
    if keep and distributed.is_rank_zero():
        folders = list_checkpoints(newest.parent)
        for folder in folders[: folders.index(newest) + 1][:-keep]:
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


def restore_random_state(checkpoint_dir: Path) -> None:
    """Set this rank's random generators to where the checkpoint found them."""
    state: dict[str, Any] = torch.load(checkpoint_dir / _rank_file(), weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002  (what libraries below us draw from)
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"])


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first, not verified."""
    names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in checkpoints_dir.glob("step-*"))
    steps = sorted((int(name[1]), name[0]) for name in names if name)
    return [checkpoints_dir / name for _, name in steps]


def _together(work: Callable[[], Result]) -> Result:
    """This rank's part of the work; a fault on one rank is an OSError on all, none waits."""
    done: list[Result] = []
    fault = ""
    try:
        done.append(work())
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        fault = str(error) or repr(error)
    faults = [each for each in distributed.gather(fault) if each]
    if faults:
        raise OSError(faults[0])
    return done[0]


def _make_room(folder: Path) -> None:
    """The empty folder; what a killed run has left unfinished goes."""
    if distributed.is_rank_zero():
        for unfinished in folder.parent.glob(".tmp-step-*"):
            shutil.rmtree(unfinished)
        folder.mkdir(parents=True)


def _write_files(
    folder: Path, state: RunState, write: Callable[[Path], None], config_yaml: str
) -> None:
    """All files of a checkpoint but the summary."""
    write(folder)
    torch.save(_random_state(), folder / _rank_file())
    if distributed.is_rank_zero():
        (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
        (folder / CONFIG).write_text(config_yaml)


def _publish(temporary: Path, final: Path, summary: dict[str, Any]) -> None:
    """Write the summary last, give the folder its name, and point `latest` at it."""
    if not distributed.is_rank_zero():
        return
    _write_durably(temporary / SUMMARY, json.dumps({"files": summary}, indent=1) + "\n")
    if final.exists():  # damaged, and passed over when the run resumed
        shutil.rmtree(final)
    temporary.replace(final)
    _fsync_dir(final.parent)
    _write_durably(final.parent / "latest", f"{final.name}\n")


def _free_gib(folder: Path) -> float:
    while not folder.exists():  # it may be what could not be made
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30


def _drop(temporary: Path) -> None:
    """Leave the disk no fuller than it was."""
    distributed.barrier()  # all have seen how full it was
    if distributed.is_rank_zero():
        shutil.rmtree(temporary, ignore_errors=True)


def _verify_part(folder: Path) -> list[str]:
    """Faults of this rank's share of the files: a large checkpoint is hashed by all ranks."""
    try:
        files = json.loads((folder / SUMMARY).read_text())["files"]
        expected = {name: (files[name]["bytes"], files[name]["sha256"]) for name in sorted(files)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{SUMMARY}: {error!r}"] if distributed.is_rank_zero() else []
    faults = []
    for name in list(expected)[distributed.rank() :: distributed.world_size()]:
        path, (size, sha256) = folder / name, expected[name]
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{name} has {path.stat().st_size} of {size} bytes")
        elif _sha256(path) != sha256:
            faults.append(f"{name} has another sha256 than written")
    return faults


def _hash_share(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of this rank's share of the files, which are on the disk then."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    share: dict[str, dict[str, Any]] = {}
    for name in names[distributed.rank() :: distributed.world_size()]:
        path = folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        share[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return share


def _gather_rows(share: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: row for part in distributed.gather(share) for name, row in sorted(part.items())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _random_state() -> dict[str, Any]:
    on_cuda = torch.cuda.is_available()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if on_cuda else None,
    }


def _rank_file() -> str:
    return f"rank-{distributed.rank():05d}.pt"


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync_dir(path.parent)


def _fsync_dir(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
