"""The folder that an export writes: complete or absent, and replaced only if an export wrote it."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKER = "millrace.json"
"""Lies in a folder of an export: where the weights came from, and all its files."""


def check_destination(out: Path) -> None:
    """Refuse a folder that something else than an export has filled.

    Raises:
        ValueError: with a file that no export wrote.
    """
    if not out.exists():
        return
    advice = "choose another folder"
    if not out.is_dir():
        raise ValueError(f"{out}: is no folder; {advice}")
    found = {path.name for path in out.iterdir()}
    strangers = sorted(found - _own_files(out))
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise ValueError(f"{out}: holds {strangers[0]}{more}, which no export wrote; {advice}")


@contextmanager
def whole_folder(out: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` when the context ends well.

    Raises:
        ValueError: as `check_destination`.
    """
    out = out.resolve()  # what a link points to
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    temporary.chmod(0o777 & ~_umask())  # mkdtemp's own is for one user alone
    lock = _lock(temporary)
    try:
        yield temporary
        _mark(temporary, about)
        _take_name(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _own_files(out: Path) -> set[str]:
    try:
        return {MARKER, *json.loads((out / MARKER).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _mark(folder: Path, about: dict[str, Any]) -> None:
    files = {path.name: _row(path) for path in sorted(folder.iterdir())}
    (folder / MARKER).write_text(json.dumps(about | {"files": files}, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o666 & ~_umask())  # safetensors writes for one user alone
        _sync(path)
    _sync(folder)


def _row(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def _take_name(temporary: Path, out: Path) -> None:
    """A folder cannot be renamed over a full one: the old export steps aside first."""
    check_destination(out)  # again: writing took its time
    aside = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    if out.exists():
        out.replace(aside)
    temporary.replace(out)
    shutil.rmtree(aside, ignore_errors=True)
    _sync(out.parent)


def _remove_leftovers(out: Path) -> None:
    """Of killed exports; a living one holds a lock on its folder."""
    for folder in out.parent.glob(f"{_prefix(out)}*"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; None where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _prefix(out: Path) -> str:
    return f".{out.name}.export-"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
