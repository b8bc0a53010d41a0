"""Lines of a corpus file, or of a byte range of it, in constant memory.

A line belongs to the range in which its first byte lies, so that the lines of adjoining ranges, one
after another, are the lines of the file wherever it is cut. Compressed files are read whole.
"""

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, BinaryIO, NamedTuple, cast

import zstandard

from pipeline.batch import EXCERPT_BYTES
from pipeline.corpus import CorpusFile
from pipeline.meter import Meter
from pipeline.urls import asking, locate

COMPRESSIONS = (".gz", ".zst")

_BLOCK_BYTES = 1 << 20  # of reading; from 256 KiB to 4 MiB the speed is the same within 5 %
# Compressed bytes inflated at a time: a bomb of the highest ratio (1:1032 for gzip, about 1:32,000
# for zst) takes 128 MB for a moment, and not the memory of the machine.
_COMPRESSED_BYTES = 1 << 12
_MAX_WINDOW_BYTES = 1 << 31  # of `zstd --long=31`; a frame takes what it asks for itself


class Line(NamedTuple):
    """One line without its line feed; of a line over the limit only the head."""

    position: int
    """Offset of its first byte in the (uncompressed) file."""
    head: bytes
    """The whole line, or as much of it as a reject shows."""
    bytes: int
    """Its length; more than `head` has where the line is over the limit."""


class DamagedFileError(Exception):
    """A compressed stream that is cut short or corrupt; what came before has been read."""

    def __init__(self, message: str, *, unread: int, line: Line | None = None) -> None:
        super().__init__(message)
        self.unread = unread
        """Stored bytes behind the damage; of a stream cut short nobody knows how many."""
        self.line = line or Line(0, b"", 0)
        """The incomplete line in which the stream breaks off."""


def compressible(*extensions: str) -> tuple[str, ...]:
    """The extensions, and each of them with each compression."""
    return tuple(name + end for name in extensions for end in ("", *COMPRESSIONS))


def is_compressed(file: CorpusFile) -> bool:
    """Whether the file can only be read from its beginning."""
    return file.url.lower().endswith(COMPRESSIONS)


def cut_bytes(file: CorpusFile, portion_bytes: int) -> list[tuple[int, int, int]]:
    """Equal ranges of at most `portion_bytes`, as (start, stop, bytes); one if compressed."""
    size = file.bytes
    pieces = 1 if is_compressed(file) else max(1, -(-size // portion_bytes))
    bounds = [size * index // pieces for index in range(pieces + 1)]
    return [(a, b, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]


def open_corpus_file(file: CorpusFile) -> BinaryIO:
    """Open the stored bytes.

    Raises:
        ValueError: the file has another size than when the corpus was listed.
    """
    fs, path = locate(file.url)
    with asking(file.url):
        opened = fs.open(path, "rb")
    opened.file_system = fs  # an archive closes with it
    size = opened.seek(0, io.SEEK_END)
    if size != file.bytes:
        opened.close()
        raise ValueError(f"{file.url}: had {file.bytes} bytes when listed, now has {size}")
    opened.seek(0)
    return cast("BinaryIO", opened)


def lines(
    file: CorpusFile, *, start: int, stop: int | None, max_bytes: int, meter: Meter | None = None
) -> Iterator[Line]:
    """The lines whose first byte lies in [start, stop), of any file; of a compressed one all lines.

    With `stop` None, up to the end of the file. `meter` is told what was read.

    Raises:
        DamagedFileError: at the end, when a compressed file is damaged; the lines before have come.
        Of a corrupt
            stream the last 4 KiB before the damage may be missing, of one cut short nothing is.
    """
    with closing(open_corpus_file(file)) as opened:
        if is_compressed(file):
            start, stop = 0, None
        position = max(start - 1, 0)
        opened.seek(position)
        found = _lines(blocks(opened, file, meter), position, max_bytes)
        if start:
            next(found, None)  # the rest of the line before, at the least its line feed
        for line in found:
            if stop is not None and line.position >= stop:
                return
            yield line


def blocks(opened: BinaryIO, file: CorpusFile, meter: Meter | None = None) -> Iterator[bytes]:
    """The bytes of an opened file from where it stands, decompressed, in blocks of any size.

    Raises:
        DamagedFileError: the compressed stream is cut short or corrupt.
    """
    name = file.url.lower()
    stored = _stored(opened, file, meter or Meter(0))
    if name.endswith((".gz", ".tgz")):
        return _inflate(stored, file.bytes, lambda: zlib.decompressobj(wbits=31))
    if name.endswith(".zst"):
        return _inflate(stored, file.bytes, _zstd_frame)
    return stored


def _stored(opened: BinaryIO, file: CorpusFile, meter: Meter) -> Iterator[bytes]:
    while True:
        with asking(file.url):
            block = opened.read(_BLOCK_BYTES)
        if not block:
            return
        meter.add(len(block))
        yield block


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()


def _inflate(stored: Iterable[bytes], size: int, new_frame: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress frames, one after another, up to the end or the first damage."""
    frame, taken = None, 0
    try:
        for block in stored:
            for begin in range(0, len(block), _COMPRESSED_BYTES):
                rest = block[begin : begin + _COMPRESSED_BYTES]
                read = taken + begin
                while rest:
                    if frame is None:
                        rest = rest.lstrip(b"\0")  # tapes and block devices pad with zeros
                        frame = new_frame() if rest else None
                        continue
                    data, rest, frame = _step(frame, rest)
                    if data:
                        yield data
            taken += len(block)
    except (zlib.error, zstandard.ZstdError) as error:
        raise DamagedFileError(f"corrupt compressed stream: {error}", unread=size - read) from None
    if frame is not None:
        raise DamagedFileError("the compressed stream ends before its end mark", unread=0)


def _step(frame: Any, data: bytes) -> tuple[bytes, bytes, Any]:
    """Feed a frame: what comes out, the bytes behind its end, and the frame unless it has ended."""
    out = frame.decompress(data)
    return (out, frame.unused_data, None) if frame.eof else (out, b"", frame)


def _lines(stream: Iterator[bytes], position: int, max_bytes: int) -> Iterator[Line]:
    """Split a stream that begins at `position`; no more than a block and a line are held."""
    pending = Bounded(position, max_bytes)
    try:
        for block in stream:
            first, *middle = block.split(b"\n")
            pending.add(first)
            if not middle:
                continue
            yield pending.line()
            position = pending.position + pending.bytes + 1
            *whole, rest = middle
            for text in whole:
                length = len(text)
                head = text if length <= max_bytes else text[:EXCERPT_BYTES]
                yield Line(position, head, length)
                position += length + 1
            pending = Bounded(position, max_bytes)
            pending.add(rest)
    except DamagedFileError as error:
        raise DamagedFileError(str(error), unread=error.unread, line=pending.line()) from None
    if pending.bytes:
        yield pending.line()


class Bounded:
    """Bytes that come in parts; once there are more than `max_bytes`, only their head is held."""

    def __init__(self, position: int, max_bytes: int) -> None:
        self.position = position
        self.bytes = 0
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []

    def add(self, part: bytes, *, length: int | None = None) -> None:
        """Append; `length` is the true one of a part that is itself only a head."""
        self.bytes += len(part) if length is None else length
        if self.bytes > self._max_bytes:
            part = (b"".join(self._parts) + part)[:EXCERPT_BYTES]
            self._parts = []
        self._parts.append(part)

    def line(self) -> Line:
        return Line(self.position, b"".join(self._parts), self.bytes)
