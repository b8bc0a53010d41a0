"""Writing a checkpoint: complete or absent, at once or in the background.

Each rank takes its files as they are in memory, writes them below a temporary name, fsyncs and
hashes them; when all have, the summary is written, the folder gets its name, and `latest` is
renamed over. In the background a thread writes a copy in host memory, and only what needs all ranks
is done where training calls: a checkpoint that is not published yet does not count, so a kill
in between leaves the one before.
"""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from training import checkpoint, distributed
from training.checkpoint import RunState
from training.durable import fsync, write_durably
from training.host_memory import HostMemory, count_bytes
from training.random_state import random_path, random_state

Result = TypeVar("Result")
Files = dict[Path, Any]
"""What a rank writes: text, bytes, or what torch.save takes, by path."""
Rows = dict[str, dict[str, Any]]
"""Bytes and sha256 of files, by their path in the checkpoint."""
MIB = 2**20


def save_checkpoint(
    checkpoints_dir: Path, state: RunState, take: Callable[[Path], Files], config_yaml: str
) -> Path:
    """Write a checkpoint; every rank calls it, and `take(folder)` gives the engine's files.

    Raises:
        OSError: no space or no permission on some rank; raised on every rank, and whatever was
            saved before is untouched.
    """
    return Saving(checkpoints_dir, state, take, config_yaml).finish()


class Saving:
    """A checkpoint between the moment whose state it holds and its publication."""

    def __init__(
        self,
        checkpoints_dir: Path,
        state: RunState,
        take: Callable[[Path], Files],
        config_yaml: str,
        *,
        memory: HostMemory | None = None,
    ) -> None:
        """Take the state; with `memory`, copy it there and begin to write in the background.

        Raises:
            OSError: as `save_checkpoint`.
        """
        self.step = state.step
        self.final = checkpoints_dir / checkpoint.folder_name(state.step)
        self.temporary = checkpoints_dir / f".tmp-{self.final.name}"
        with self._or_nothing():
            _together(lambda: _make_room(self.temporary))
            files = _together(lambda: take(self.temporary))
            files |= _own_files(self.temporary, state, config_yaml)
            _together(lambda: _check_space(self.temporary, count_bytes(list(files.values()))))
            if memory:
                files = _together(lambda: memory.copy(files))
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._rows = thread.submit(write_files, self.temporary, files)
        thread.shutdown(wait=False)

    def is_written(self) -> bool:
        """Whether all ranks are done with their files, or have failed; every rank asks."""
        return all(distributed.gather(self._rows.done()))

    def finish(self) -> Path:
        """Wait until the files are written, and publish them; every rank calls it.

        Raises:
            OSError: as `save_checkpoint`.
        """
        with self._or_nothing():
            shares = distributed.gather(_together(self._rows.result))
            summary = {name: row for share in shares for name, row in sorted(share.items())}
            _together(lambda: _publish(self.temporary, self.final, summary))
        return self.final

    def abandon(self) -> None:
        """Wait for this rank's thread alone; the files never count."""
        self._rows.exception()

    @contextlib.contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """A fault leaves no file, and is told with the free space, on every rank."""
        try:
            yield
        except OSError as error:
            free_mib = _free_bytes(self.temporary) / MIB
            distributed.barrier()  # all have seen how full it was
            if distributed.is_rank_zero():
                shutil.rmtree(self.temporary, ignore_errors=True)
            raise OSError(
                f"checkpoint of step {self.step} not written to {self.temporary}: {error}; "
                f"{free_mib:,.0f} MiB were free there; the checkpoints before it are untouched"
            ) from error


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


def _own_files(folder: Path, state: RunState, config_yaml: str) -> Files:
    """All files of a checkpoint but the engine's and the summary."""
    files: Files = {random_path(folder, distributed.rank()): random_state()}
    if distributed.is_rank_zero():
        files[folder / checkpoint.STATE] = json.dumps(asdict(state), indent=1) + "\n"
        files[folder / checkpoint.CONFIG] = config_yaml
    return files


def _check_space(folder: Path, num_bytes: int) -> None:
    """Refuse before the first byte what all ranks together have no space for."""
    needed = sum(distributed.gather(num_bytes))
    if distributed.is_rank_zero() and needed > _free_bytes(folder):
        raise OSError(errno.ENOSPC, f"it needs {needed / MIB:,.0f} MiB: no space left on device")


def write_files(folder: Path, files: Files) -> Rows:
    """Write this rank's files, so that they are on the disk, and hash them."""
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        _write(path, content)
    for parent in {path.parent for path in files}:
        fsync(parent)
    return {str(path.relative_to(folder)): checkpoint.describe_file(path) for path in files}


def _write(path: Path, content: Any) -> None:
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    fsync(path)


def _publish(temporary: Path, final: Path, summary: Rows) -> None:
    """Write the summary last, give the folder its name, and point `latest` at it."""
    if not distributed.is_rank_zero():
        return
    for path in temporary.rglob("*"):  # what DeepSpeed has written past us, as offloaded tensors
        if path.is_file() and (name := str(path.relative_to(temporary))) not in summary:
            fsync(path)
            summary[name] = checkpoint.describe_file(path)
    text = json.dumps({"files": summary}, indent=1) + "\n"
    write_durably(temporary / checkpoint.SUMMARY, text.encode())
    if final.exists():  # damaged, and passed over when the run resumed
        shutil.rmtree(final)
    temporary.replace(final)
    fsync(final.parent)
    write_durably(final.parent / "latest", f"{final.name}\n".encode())


def _free_bytes(folder: Path) -> int:
    while not folder.exists():  # it may be what could not be made
        folder = folder.parent
    return shutil.disk_usage(folder).free
