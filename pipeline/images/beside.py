"""Versions of what is read beside the files of a corpus: captions, images that a table lists.

They enter the fingerprint of a portion, so that a rerun sees that one of these files changed.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterable
from typing import Any

from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.corpus import version_of
from pipeline.urls import asking, locate

ABSENT, FORBIDDEN, UNKNOWN = "absent", "forbidden", "unknown"


class Versions:
    """Versions of single files: size, and time of change or etag.

    A store is asked for whole folders: a listing of 1,000 files costs as much as a look at one. A
    web server has no listing, so that its files are not looked at.
    """

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, Any]] = {}

    def of(self, fs: Any, path: str) -> str:
        """The version of a file, which may not be there."""
        try:
            if isinstance(fs, LocalFileSystem):
                found = os.stat(path)  # noqa: PTH116 - ten times as fast as fsspec, for millions
                return f"{found.st_size} {found.st_mtime_ns}"
            if isinstance(fs, HTTPFileSystem):
                return UNKNOWN
            with asking(path):
                info = self._info(fs, path)
        except (OSError, ValueError):  # of a name, or of a store: reading tells
            return ABSENT
        return f"{info['size']} {version_of(info)}"

    def _info(self, fs: Any, path: str) -> dict[str, Any]:
        if isinstance(fs, AbstractArchiveFileSystem):
            info: dict[str, Any] = fs.info(path)
            return info
        folder = posixpath.dirname(path)
        if folder not in self._folders:
            listing = fs.ls(folder, detail=True)
            self._folders[folder] = {entry["name"].lstrip("/"): entry for entry in listing}
        if path.lstrip("/") not in self._folders[folder]:
            raise FileNotFoundError(path)
        found: dict[str, Any] = self._folders[folder][path.lstrip("/")]
        return found


def container_versions(url: str, versions: Versions) -> list[str]:
    """The version of the archive in a chain as `tar://::a.tar`; nothing where there is none."""
    container = url.partition("::")[2]
    return [versions.of(*locate(container))] if container else []


def digest(lines: Iterable[str]) -> str:
    """Of versions in order; nothing of none."""
    sha256 = hashlib.sha256()
    of_none = sha256.digest()
    for line in lines:
        sha256.update(f"{line}\n".encode())
    return "" if sha256.digest() == of_none else sha256.hexdigest()
