"""The corpus: its files, found by globs, folders and URLs, and their division into portions.

A portion is what one Beam worker reads at a time: a byte range, a run of row groups, or a whole
file where the format cannot be cut. Portions are planned from the listing, so the plan is the same
on any machine.
"""

import logging
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from configs.redact import redact
from pipeline.urls import asking, escaped, locate, member_url

_LOG = logging.getLogger(__name__)

MOST_RECORD_MIB = 256
"""Beam cannot send an element of 2 GB (#31607). A batch ends with the record that fills it; if each
byte of that became a token of 4 bytes, it would have 1.25 GiB with its text."""
FILE_COST_BYTES = 4096
"""What opening a file costs beside its bytes: portions of tiny files are kept small too."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus."""

    url: str
    """Where fsspec opens it."""
    source: str
    """Its name in rejects and reports: relative to the corpus root, `escaped`."""
    bytes: int
    """Size as stored."""
    version: str
    """Changes when the file does: modification time or etag."""


@dataclass(frozen=True, slots=True)
class Portion:
    """One piece of reading: a file, or the part of it from `start` to `stop`."""

    index: int
    """Position in the plan."""
    file: CorpusFile
    start: int
    """First byte, or first row group."""
    stop: int
    """Behind the last byte, or row group."""
    bytes: int
    """Bytes to read, for progress."""
    more: tuple[CorpusFile, ...] = ()
    """Files behind `file` that are read with it, where each file is one record."""
    beside: str = ""
    """Changes when what is read beside these files does, as captions."""

    @property
    def files(self) -> tuple[CorpusFile, ...]:
        """All files that it reads of, in order."""
        return (self.file, *self.more)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What every corpus format is told; each format's `Config` extends it."""

    path: tuple[str, ...]
    """Files, folders, globs or fsspec URLs of the corpus."""
    portion_mib: int = 64
    """Largest pieces that uncompressed files are cut into, MiB; a small corpus is cut finer."""
    max_record_mib: int = 32
    """A larger record is a reject, MiB; 1 to 256."""

    @property
    def resources(self) -> tuple[str, ...]:
        """Files that decide bytes beside those of the corpus."""
        return ()

    @property
    def work_factor(self) -> int:
        """Bytes that are read, about, for a byte of the corpus: above 1 where it lists files."""
        return 1

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        if not self.path:
            raise ValueError("path: is empty; name at least one file, folder, glob or URL")
        for name in ("portion_mib", "max_record_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; it must be at least 1 MiB")
        if self.max_record_mib > MOST_RECORD_MIB:
            found = f"max_record_mib: is {self.max_record_mib}; at most {MOST_RECORD_MIB} MiB are"
            raise ValueError(f"{found} allowed, for engines carry no element of 2 GB")


def list_files(
    path: Sequence[str], extensions: Sequence[str], companions: Sequence[str] = ()
) -> list[CorpusFile]:
    """The files of a corpus, sorted by `source`, each once.

    A folder gives the files below it that have one of the `extensions`, a glob those that it
    matches; hidden files and folders are skipped, others are counted in a warning, but for those
    with an extension of `companions`. A file that is named itself may have any extension.

    Raises:
        FileNotFoundError: an entry of `path` names nothing.
        ValueError: an entry names things, but no file with one of the extensions.
    """
    found: dict[str, _Found] = {}
    for pattern in path:
        for entry in _expand(pattern, extensions, companions):
            found.setdefault(entry.url, entry)
    return sorted(_name(list(found.values())), key=lambda file: file.source)


def plan_portions(reader: ModuleType, config: CorpusConfig) -> list[Portion]:
    """Divide the corpus into portions; `reader` is a module of `pipeline/readers/`.

    An empty file is a portion without a document, so that the count of files stays right.

    Raises:
        FileNotFoundError, ValueError: no files (see `list_files`), or what the config names, as a
            column, is in no record of the first portion.
    """
    companions = reader.companions(config) if hasattr(reader, "companions") else ()
    files = list_files(config.path, reader.EXTENSIONS, companions)
    empty = [file.source for file in files if not file.bytes]
    if empty:
        _LOG.warning(
            "%d of %d corpus files are empty, as %s", len(empty), len(files), ", ".join(empty[:3])
        )
    cutting = replace(config, portion_mib=_portion_mib(files, config.portion_mib))
    if getattr(reader, "FILE_IS_RECORD", False):
        portions = _group_files(files, cutting.portion_mib << 20)
    else:
        pieces = [(file, *piece) for file in files for piece in reader.cut(file, cutting)]
        portions = [Portion(index, *piece) for index, piece in enumerate(pieces)]
    filled = [portion for portion in portions if portion.bytes]
    if filled:
        _check_names_exist(reader, config, filled[0])
    if not hasattr(reader, "beside"):
        return portions
    beside = reader.beside(portions, config)
    return [replace(one, beside=each) for one, each in zip(portions, beside, strict=True)]


def _group_files(files: Sequence[CorpusFile], portion_bytes: int) -> list[Portion]:
    """Runs of whole files: one portion a file would be a million portions of a million images."""
    ends = np.cumsum([file.bytes + FILE_COST_BYTES for file in files])
    bounds = np.flatnonzero(np.diff((ends - 1) // portion_bytes, prepend=-1, append=-1))
    runs = [files[first:stop] for first, stop in pairwise(bounds.tolist())]
    return [
        Portion(index, run[0], 0, len(run), sum(file.bytes for file in run), tuple(run[1:]))
        for index, run in enumerate(runs)
    ]


def _portion_mib(files: Sequence[CorpusFile], most: int) -> int:
    """A small corpus is cut finer, into about 64 portions of at least 4 MiB: one file of 45 MB too
    is read by several workers. Decided by the listing alone, never by the number of workers.
    """
    total_mib = sum(file.bytes for file in files) >> 20
    return min(most, max(4, total_mib // 64))


class _Found(NamedTuple):
    url: str
    root: str
    info: dict[str, Any]


def _expand(pattern: str, extensions: Sequence[str], companions: Sequence[str]) -> list[_Found]:
    """The files that one entry of the config's `path` names."""
    fs, path = locate(pattern)
    with asking(pattern):
        if not (has_magic(path) or isinstance(fs, LocalFileSystem)):
            fs.info(path)  # where access is refused, isfile and isdir would say no
        if fs.isfile(path):
            info = _follow(fs, fs.info(path))
            return [_found(fs, info, posixpath.dirname(path), pattern)]
        root, matches = _list(fs, path)
    files = [_follow(fs, info) for info in matches.values() if info["type"] != "directory"]
    files = [info for info in files if info["type"] == "file"]
    if not files:
        what = "folder holds no files" if root == path else "no file matches"
        raise FileNotFoundError(f"{pattern}: {what}; looked for {', '.join(extensions)}")
    visible = [info for info in files if "/." not in info["name"][len(root.rstrip("/")) :]]
    wanted = [info for info in visible if info["name"].lower().endswith(tuple(extensions))]
    if not wanted:
        raise ValueError(
            f"{pattern}: {len(files)} files, none of them with an extension of this format: "
            f"{', '.join(extensions)}; found {posixpath.basename(files[0]['name'])}"
        )
    _tell_others(pattern, [info["name"] for info in visible], (*extensions, *companions))
    with asking(pattern):
        return [_found(fs, info, root, pattern) for info in wanted]


def _tell_others(pattern: str, names: Sequence[str], known: tuple[str, ...]) -> None:
    others = [name for name in names if not name.lower().endswith(known)]
    if others:
        _LOG.warning(
            "%s: %d of %d files are passed over, as %s: their extension is none of this format's",
            pattern,
            len(others),
            len(names),
            posixpath.basename(others[0]),
        )


def _list(fs: Any, path: str) -> tuple[str, dict[str, Any]]:
    """The folder whose content a path or glob names, and what is in it."""
    local = isinstance(fs, LocalFileSystem)
    fs = _WholeFolders() if local else fs
    if fs.isdir(path):
        return path, fs.find(path, detail=True)
    if not has_magic(path):
        raise FileNotFoundError(path)
    root, matches = _fixed_part(path), fs.glob(path, detail=True)
    if not matches and root and not local:
        fs.info(root)  # a glob in a bucket that does not exist matches nothing, too
    return root, matches


class _WholeFolders(LocalFileSystem):  # type: ignore[misc]
    """Of this machine, but a folder that may not be read is an error: fsspec leaves it out."""

    def walk(self, path: str, *words: Any, **options: Any) -> Iterator[Any]:
        """Passes `on_error` on, which fsspec's own does not for the folders in a folder."""
        options["on_error"] = _refuse_unreadable
        walked: Iterator[Any] = super().walk(path, *words, **options)
        return walked


def _refuse_unreadable(error: Exception) -> None:
    if isinstance(error, PermissionError):
        raise error


def _follow(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """What a link points to, under the link's name."""
    if not info.get("islink"):
        return info
    target = posixpath.realpath(info["name"])
    if fs.isfile(target):
        return {**fs.info(target), "name": info["name"]}
    _LOG.warning(
        "%s links to no file and is not followed; name a folder that it links to in `path`",
        info["name"],
    )
    return info


def _found(fs: Any, info: dict[str, Any], root: str, pattern: str) -> _Found:
    if info["size"] is None:
        info = fs.info(info["name"])
    local = isinstance(fs, LocalFileSystem)
    url = info["name"] if local else member_url(fs, info["name"], pattern)
    return _Found(url, root, info)


def _fixed_part(path: str) -> str:
    """`data/*/a.txt` -> `data`; in an archive, whose paths have no root, `*.txt` -> nothing."""
    parts = path.split("/")
    magic = next(index for index, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:magic]) or ("/" if path.startswith("/") else "")


def _name(found: list[_Found]) -> list[CorpusFile]:
    """Give each file its `source`: relative to its own root, or a common one to be unique.

    Sources are published, so they show no credentials, and are text whatever bytes a name has.
    """
    shown = [escaped(redact(entry.info["name"])) for entry in found]
    roots = [escaped(redact(entry.root)) for entry in found]
    names = [name[len(root) :].lstrip("/") for name, root in zip(shown, roots, strict=True)]
    if max(Counter(names).values(), default=1) > 1:
        paths = [f"/{name.lstrip('/')}" for name in shown]
        common = posixpath.commonpath(paths)
        names = [posixpath.relpath(path, common) for path in paths]
    if max(Counter(names).values(), default=1) > 1:
        names = [escaped(redact(entry.url)) for entry in found]
    if max(Counter(names).values(), default=1) > 1:  # what tells them apart was a secret, perhaps
        names = [f"{name}#{number}" for number, name in enumerate(names, 1)]
    return [
        CorpusFile(entry.url, name, _size(entry), version_of(entry.info))
        for entry, name in zip(found, names, strict=True)
    ]


def _size(entry: _Found) -> int:
    if entry.info["size"] is None:
        raise ValueError(f"{entry.url}: the server does not tell its size; download the file first")
    return int(entry.info["size"])


# What the file systems of fsspec call the thing that changes when a file does, best first.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "CRC",
)


def version_of(info: dict[str, Any]) -> str:
    """What of a file's information changes when the file does."""
    return next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")


def _check_names_exist(reader: ModuleType, config: CorpusConfig, portion: Portion) -> None:
    """Fail before the build where a wrong name, as of a column, would reject all records.

    Reads up to the first good record, as a rule one batch. A reader may say by which reasons it
    knows such a name, in `ABSENT`.
    """
    absent = set(getattr(reader, "ABSENT", ("missing_column",)))
    detail = None
    for batch in reader.read(portion, config):
        reasons = set(batch.rejects.column("reason").to_pylist())
        if batch.documents.num_rows or reasons - absent:
            return
        if batch.rejects.num_rows:
            detail = batch.rejects.column("detail")[0].as_py()
    if detail is not None:
        raise ValueError(f"{portion.file.source}: {detail}")
