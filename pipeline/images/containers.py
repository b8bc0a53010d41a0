"""What Pillow does not look at in PNG and WebP files: checksums, lengths, end marks."""

import struct
import zlib
from collections.abc import Iterator

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"

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


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk of a PNG, and where its content begins and ends."""
    place = len(_PNG_START)
    while place + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        yield kind, place + 8, place + 8 + length
        place += 12 + length
