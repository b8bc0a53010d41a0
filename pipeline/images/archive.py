"""Members of tar and zip archives, in order, each read into memory only if it is wanted.

Nothing is unpacked: no name of an archive ever becomes a path; bytes of a tar's names that are not
UTF-8 become backslash escapes, so that no two names become one. Links, devices and hidden files are
passed over. What stands before the damage of a truncated tar is read; a zip has its directory at
its end, and without that is lost whole.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO, NamedTuple

from pipeline.byte_range import DamagedFileError, Line, blocks, open_corpus_file
from pipeline.corpus import CorpusFile
from pipeline.meter import Meter
from pipeline.records import BadRecord, too_large

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.zst")
EXTENSIONS = (*TAR_EXTENSIONS, ".zip")

_MAX_NAME_BYTES = 1 << 20
"""Of a long name or a pax header in a tar; one block of 512 bytes is usual."""


class Member(NamedTuple):
    """A file of an archive."""

    position: int
    """Its number among all entries of the archive."""
    name: str
    data: bytes
    """Empty where it is `bad`, or was not wanted."""
    bad: BadRecord | None = None
    """Why it could not be read."""
    size: int = 0
    """Bytes, of one that was not wanted too."""


def read_members(
    file: CorpusFile, *, wanted: Callable[[str], bool], max_bytes: int, meter: Meter
) -> Iterator[Member | BadRecord]:
    """The wanted members; a bad record alone, as the last one, tells what of the file is lost."""
    if file.bytes and file.url.lower().endswith(".zip"):
        return _zip_members(file, wanted, max_bytes, meter)
    return read_tar(file, wanted=wanted, max_bytes=max_bytes, meter=meter)


def read_tar(
    file: CorpusFile,
    *,
    wanted: Callable[[str], bool],
    max_bytes: int,
    meter: Meter,
    others: bool = False,
) -> Iterator[Member | BadRecord]:
    """As `read_members`, of a tar; with `others` members that are not wanted come too, unread."""
    if not file.bytes:
        yield BadRecord("empty_file", 0, "0 bytes", 0, b"")
        return
    position, read = 0, 0
    try:
        with closing(open_corpus_file(file)) as opened:
            stream: Any = _Stream(blocks(opened, file, meter))
            # Closing is for files that it opened itself; of a damaged one it would read on.
            tar = tarfile.open(fileobj=stream, mode="r|", tarinfo=_Tar, errors="backslashreplace")  # noqa: SIM115
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if entry.isreg() and wanted(entry.name):
                    yield _tar_member(tar, entry, position, max_bytes)
                elif entry.isreg() and others:
                    yield Member(position, entry.name, b"", size=entry.size)
                position, read = position + 1, tar.offset
    except (DamagedFileError, tarfile.TarError, RecursionError, OSError) as error:
        reason = "truncated_file" if position else "unreadable_file"
        detail = " ".join(str(error).split())
        # Of a compressed stream nobody knows where in the file its damage lies.
        lost = file.bytes - read if file.url.lower().endswith(".tar") else 0
        lost = max(lost, getattr(error, "unread", 0), 0) if position else file.bytes
        yield BadRecord(reason, position, detail, lost, b"")


class _Tar(tarfile.TarInfo):
    """An entry; where tarfile takes a broken header for the end of the archive, this raises."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Tar":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            message = str(error)
            if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                message = "the archive ends before its end mark"
            raise DamagedFileError(message, unread=0) from None

    def _proc_member(self, tarfile_: tarfile.TarFile) -> Any:
        named = not self.isreg() and not self.issym() and not self.islnk()
        if self.size < 0 or named and self.size > _MAX_NAME_BYTES:
            raise DamagedFileError(f"a header with a size of {self.size} bytes", unread=0)
        return super()._proc_member(tarfile_)  # type: ignore[misc]


class _Stream:
    """Blocks of bytes as the file object that tarfile reads in order."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not self._rest:
                self._rest = memoryview(next(self._parts, b""))
                if not self._rest:
                    break
            take = size - len(found)
            found += self._rest[:take]
            self._rest = self._rest[take:]
        return bytes(found)


def _tar_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, position: int, most: int) -> Member:
    if entry.size > most:
        bad = too_large(Line(position, b"", entry.size), what="member", max_bytes=most)
        return Member(position, entry.name, b"", bad, entry.size)
    content = tar.extractfile(entry)
    assert content is not None, "a regular file has content"
    data = content.read()
    if len(data) < entry.size:
        raise DamagedFileError("the archive ends inside a member", unread=0)
    return Member(position, entry.name, data, None, entry.size)


def _zip_members(
    file: CorpusFile, wanted: Callable[[str], bool], max_bytes: int, meter: Meter
) -> Iterator[Member | BadRecord]:
    try:
        with closing(open_corpus_file(file)) as opened, zipfile.ZipFile(opened) as archive:
            for position, entry in enumerate(archive.infolist()):
                regular = not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16)
                if regular and wanted(entry.filename):
                    yield _zip_member(archive, entry, position, max_bytes)
                meter.add(entry.compress_size)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        reason, detail = "unreadable_file", " ".join(str(error).split())
        if _begins_as_zip(file):
            reason = "truncated_file"
            detail = f"no directory at its end, so nothing of it can be read: {detail}"
        yield BadRecord(reason, 0, detail, file.bytes, b"")


def _zip_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, position: int, max_bytes: int
) -> Member:
    size, name = entry.file_size, entry.filename
    if size > max_bytes:
        bad = too_large(Line(position, b"", size), what="member", max_bytes=max_bytes)
        return Member(position, name, b"", bad, size)
    try:
        with archive.open(entry) as content:
            # Never more than the directory says, whatever the stream would inflate to.
            return Member(position, name, content.read(), None, size)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        detail = f"{name}: {' '.join(str(error).split())}"
        bad = BadRecord("unreadable_file", position, detail, entry.compress_size, b"")
        return Member(position, name, b"", bad, size)


def _begins_as_zip(file: CorpusFile) -> bool:
    with closing(open_corpus_file(file)) as opened:
        start: BinaryIO = opened
        return start.read(4) == b"PK\x03\x04"
