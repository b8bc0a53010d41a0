"""Shards: samples become a plain USTAR tar, its index and its row of the manifest in one pass.

The bytes are those of webdataset's TarWriter with `mtime=0` (a test holds them equal), from the
same tarfile headers. TarWriter itself hides in its output buffer where a sample ends, which chunks
need, copies at 220 to 390 MB/s against 280 to 690 here, and imports torch where it is installed.
"""

import hashlib
import io
import os
import re
import secrets
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline.machine import writing
from pipeline.manifest import Chunks, Shard

BLOCK = 512
"""Headers and contents of a tar start at multiples of this, bytes."""
RECORD = 10_240
"""A tar is padded to a multiple of this, bytes."""
MAX_NAME_BYTES = 100
"""What fits into a USTAR header without a prefix, which wids ignores."""
MAX_MEMBER_BYTES = 8 * 2**30 - 1
"""What the octal size field of a USTAR header holds."""
CHUNK_BYTES = 8 * 2**20
"""A chunk ends before the sample that would carry it past this; one larger sample is a chunk."""
WRITEBACK = 8 * 2**20
"""Bytes after which writing them begins."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_EXTENSION = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is stored under one WebDataset key."""

    key: str
    """Unique over the dataset: ASCII letters, digits, `_` and `-`."""
    files: dict[str, bytes]
    """Content of each member, by its extension: `tokens.npy`, `json`."""
    tokens: int = 0
    """Tokens in the sample; 0 for images."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError(f"sample '{self.key}' has no members")
        for extension, content in self.files.items():
            name = f"{self.key}.{extension}"
            if fault := name_fault(name):
                raise ValueError(fault)
            if len(content) > MAX_MEMBER_BYTES:
                raise ValueError(f"{name}: {len(content)} bytes; USTAR holds {MAX_MEMBER_BYTES}")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar, as its header tells."""

    name: str
    """Key and extension."""
    offset: int
    """Of its header in the tar, bytes."""
    size: int
    """Of its content, bytes."""
    header: bytes
    """The header itself."""

    @property
    def start(self) -> int:
        """Offset of its content."""
        return self.offset + BLOCK

    @property
    def stop(self) -> int:
        """Offset behind its padding: of the next header."""
        return self.start + _padded(self.size)

    @property
    def key(self) -> str:
        """The name up to the first dot."""
        return self.name.partition(".")[0]

    @property
    def extension(self) -> str:
        """The name behind the first dot."""
        return self.name.partition(".")[2]


def write_shard(path: Path, samples: Iterable[Sample], *, chunk_bytes: int = CHUNK_BYTES) -> Shard:
    """Write samples, in order, as the tar `path` and its index `path.idx`; both complete or absent.

    Raises:
        ValueError: no samples, a key twice, or samples that differ in their extensions.
    """
    nonce = secrets.token_hex(4)
    tar_path = path.with_name(f".{path.name}.{nonce}")
    idx_path = path.with_name(f".{path.name}.idx.{nonce}")
    with writing(path, tar_path, idx_path):
        with tar_path.open("wb", buffering=2**20) as file:
            writer = _Writer(file, chunk_bytes)
            for sample in samples:
                writer.write(sample)
            writer.finish()
            _sync(file)
        with idx_path.open("wb") as file:
            file.write(render_index(writer.offsets))
            _sync(file)
        shard = writer.shard(path.name)
        idx_path.replace(index_path(path))  # first: a tar under its name has its index
        tar_path.replace(path)
    return shard


def index_path(tar_path: Path) -> Path:
    """Where the index of a tar lies."""
    return tar_path.with_name(f"{tar_path.name}.idx")


def render_index(offsets: Sequence[int]) -> bytes:
    """Each sample's first header, then the end of the last one's padding, as u64 little-endian."""
    return struct.pack(f"<{len(offsets)}Q", *offsets)


def encode_npy(array: npt.NDArray[Any]) -> bytes:
    """An array as a .npy file, version 1.0: equal arrays give equal bytes."""
    file = io.BytesIO()
    contiguous = np.ascontiguousarray(array)
    np.lib.format.write_array(file, contiguous, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def name_fault(name: str) -> str:
    """What keeps a name from being a member of a shard, or nothing."""
    key, _, extension = name.partition(".")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        return f"member name '{name}' is longer than {MAX_NAME_BYTES} bytes"
    if not _KEY.fullmatch(key):
        return (
            f"key of '{name}': ASCII letters, digits, _ and - are allowed, a letter or digit first"
        )
    if not _EXTENSION.fullmatch(extension):
        return f"extension of '{name}': lower-case ASCII letters, digits, _ and - between dots"
    return ""


def render_header(name: str, size: int) -> bytes:
    """The only header that a member of this name and size may have."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    info.mtime = 0
    info.uname = info.gname = "bigdata"  # TarWriter's default
    return info.tobuf(tarfile.USTAR_FORMAT)


def scan(path: Path) -> Iterator[Member]:
    """The members of a tar by its headers, whatever their kind; contents are not read.

    Raises:
        ValueError: a damaged header, a cut member or a missing or broken end of the archive.
    """
    size = path.stat().st_size
    offset = 0
    with path.open("rb", buffering=0) as file:
        while (header := _read_header(file, offset, size)) is not None:
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ValueError(f"damaged header at byte {offset}: {error}") from None
            member = Member(info.name, offset, info.size, header)
            if info.size < 0:  # in base 256, which tarfile reads
                raise ValueError(f"damaged header at byte {offset}: size {info.size}")
            if member.stop > size:
                raise ValueError(f"cut off at byte {size}, inside of {member.name}")
            yield member
            offset = member.stop
        _check_end(file, offset, size)


@dataclass(slots=True)
class _Chunk:
    first_sample: int
    start: int
    stop: int
    samples: int = 0
    tokens: int = 0
    crc32: int = 0


@dataclass(slots=True)
class _Writer:
    """The state of one pass: what was written, and its checksums."""

    file: IO[bytes]
    chunk_bytes: int
    offsets: list[int] = field(default_factory=lambda: [0])
    keys: set[str] = field(default_factory=set)
    chunks: list[_Chunk] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)
    position: int = 0
    sent: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)

    def write(self, sample: Sample) -> None:
        self._check(sample)
        size = sum(BLOCK + _padded(len(content)) for content in sample.files.values())
        chunk = self._chunk_for(size)
        for extension in self.extensions:
            content = sample.files[extension]
            header = render_header(f"{sample.key}.{extension}", len(content))
            for part in (header, content, bytes(_padded(len(content)) - len(content))):
                self._put(part)
                chunk.crc32 = zlib.crc32(part, chunk.crc32)
        chunk.samples += 1
        chunk.tokens += sample.tokens
        chunk.stop = self.position
        self.offsets.append(self.position)

    def _check(self, sample: Sample) -> None:
        extensions = sorted(sample.files)
        self.extensions = self.extensions or extensions
        if extensions != self.extensions:
            raise ValueError(
                f"sample '{sample.key}' has members {', '.join(extensions)}; "
                f"the shard's first sample has {', '.join(self.extensions)}"
            )
        if sample.key in self.keys:
            raise ValueError(f"key '{sample.key}' is given twice")
        self.keys.add(sample.key)

    def _chunk_for(self, size: int) -> _Chunk:
        full = not self.chunks or self.position + size - self.chunks[-1].start > self.chunk_bytes
        if full:
            self.chunks.append(_Chunk(len(self.offsets) - 1, self.position, self.position))
        return self.chunks[-1]

    def _put(self, part: bytes) -> None:
        self.file.write(part)
        self.sha256.update(part)
        self.position += len(part)
        if self.position - self.sent >= WRITEBACK:
            self._begin_writeback()

    def _begin_writeback(self) -> None:
        """Have the system write what it holds, while the next samples are made.

        Else the fsync at the end waits for all of it: 0.12 s for 256 MiB, 0.002 s so.
        """
        if hasattr(os, "posix_fadvise"):  # Linux
            size = self.position - self.sent
            os.posix_fadvise(self.file.fileno(), self.sent, size, os.POSIX_FADV_DONTNEED)
        self.sent = self.position

    def finish(self) -> None:
        if not self.chunks:
            raise ValueError("a shard without samples; every shard holds at least one")
        end = self.position + 2 * BLOCK
        self._put(bytes(2 * BLOCK + -end % RECORD))

    def shard(self, name: str) -> Shard:
        columns = {
            column: tuple(getattr(chunk, column) for chunk in self.chunks)
            for column in Chunks.__slots__
        }
        return Shard(
            name=name,
            bytes=self.position,
            samples=len(self.offsets) - 1,
            tokens=sum(chunk.tokens for chunk in self.chunks),
            sha256=self.sha256.hexdigest(),
            chunks=Chunks(**columns),
        )


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_header(file: IO[bytes], offset: int, size: int) -> bytes | None:
    if offset + BLOCK > size:
        raise ValueError(f"cut off at byte {size}: no end of the archive")
    file.seek(offset)
    header = file.read(BLOCK)
    return header if any(header) else None


def _check_end(file: IO[bytes], offset: int, size: int) -> None:
    """Two blocks of zeros, then zeros to a full record, and nothing else."""
    expected = offset + 2 * BLOCK + -(offset + 2 * BLOCK) % RECORD
    if size != expected:
        raise ValueError(
            f"ends at byte {size}; its members and the end of the archive give {expected}"
        )
    file.seek(offset)
    if any(file.read(size - offset)):
        raise ValueError(f"data behind the end of the archive at byte {offset}")
