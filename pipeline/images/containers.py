"""What Pillow does not look at in PNG, WebP and TIFF files: checksums, lengths, end marks."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

_RIFF_HEAD = 12
"""Bytes before the first chunk of a WebP."""
_STRIPS_AND_TILES = ((273, 324), (279, 325))
"""Tags of where they begin, and of their sizes."""

_PNG_BITS = 24
"""Where the number of bits of a channel stands, in the header that comes first."""


def png_fault(encoded: bytes) -> str:
    """The first chunk of pixels whose checksum is not its own, or nothing.

    Pillow would give what stands there for pixels, and libpng refuse the file.
    """
    for kind, start, stop in _chunks(encoded):
        if kind == b"IDAT":
            stored = encoded[stop : stop + 4]
            found = zlib.crc32(memoryview(encoded)[start - 4 : stop])
            if len(stored) == 4 and stored != struct.pack(">I", found):
                return f"wrong checksum of the pixels at byte {start}"
    return ""


def is_plain_png(encoded: bytes) -> bool:
    """Whether other decoders see what Pillow does.

    Of 16 bits a channel it keeps the high byte, and it does not miss the end mark.
    """
    return encoded[_PNG_BITS] <= 8 and encoded.endswith(_PNG_END)


def is_cut_webp(encoded: bytes) -> bool:
    """Whether a WebP file is shorter than it says; its decoder only says that it is damaged."""
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP":
        return False
    size: int = struct.unpack("<I", encoded[4:8])[0]
    return len(encoded) < size + 8


def mended_webp(encoded: bytes) -> bytes:
    """A cut WebP file that its decoder takes: ended behind the first picture, or that filled up.

    libwebp wants whole chunks. Zeros in the place of what a chunk has lost are no residual to the
    prediction of a lossy picture, and one colour to a lossless one; pixels before stay what they
    are. Of an animation the first frame is the picture.
    """
    stop, has_picture = _RIFF_HEAD, False
    while stop + 8 <= len(encoded) and not has_picture:
        kind, size = struct.unpack_from("<4sI", encoded, stop)
        stop += 8 + size + size % 2
        has_picture = kind in (b"VP8 ", b"VP8L", b"ANMF")
    head = encoded[:4] + struct.pack("<I", stop - 8) + encoded[8:_RIFF_HEAD]
    return head + encoded[_RIFF_HEAD:stop].ljust(stop - _RIFF_HEAD, b"\0")


def is_cut_tiff(encoded: bytes, tags: Mapping[int, Any]) -> bool:
    """Whether the directory of a TIFF, or a strip or tile of its `tags`, ends behind the file.

    libtiff, which reads compressed ones, only says that it cannot.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(encoded[:4])
    if order is None:
        return False
    place: int = struct.unpack(f"{order}I", encoded[4:8].ljust(4, b"\xff"))[0]
    entries: int = struct.unpack(f"{order}H", encoded[place : place + 2].ljust(2, b"\xff"))[0]
    if place + 2 + 12 * entries > len(encoded):
        return True
    starts, sizes = (chain(*(tags.get(tag, ()) for tag in pair)) for pair in _STRIPS_AND_TILES)
    return any(start + size > len(encoded) for start, size in zip(starts, sizes, strict=False))


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk of a PNG, and where its content begins and ends."""
    place = len(_PNG_START)
    while place + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        yield kind, place + 8, place + 8 + length
        place += 12 + length
