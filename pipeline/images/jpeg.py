"""JPEG by the interface of libjpeg-turbo itself: Pillow's pixels in 0.85 of its time.

Files with any fault are left to Pillow, but for what it hides: pixels that are made up.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

_CUT = re.compile("premature end", re.IGNORECASE)
_DAMAGED = re.compile("bad (huffman|arithmetic) code|found marker|before marker 0xd[0-7]", re.I)
"""Of libjpeg's warnings those behind which pixels are wrong. Others are harmless: before the end
marker, 0xd9, cameras leave bytes."""


def decode(encoded: bytes, size: tuple[int, int], *, shrink: int) -> Pixels | None:
    """The pixels (height, width, 3) of a file in RGB or greyscale; None where it has a fault.

    Args:
        encoded: the file.
        size: width and height by its header.
        shrink: by how much both are divided while decoding, 1, 2, 4 or 8.
    """
    width, height = (-(-side // shrink) for side in size)
    least = {"min_height": height, "min_width": width} if shrink > 1 else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGB", **least)
    except ValueError:
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def find_damage(encoded: bytes) -> str:
    """What libjpeg warns of where the rest of an image is grey or garbage; empty if nothing.

    Raises:
        OSError: the file breaks off, though behind the place stands an end marker, or zeros.
    """
    try:
        colours = simplejpeg.decode_jpeg_header(encoded)[2]
        wished = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(encoded, colorspace=wished, min_height=1, min_width=1)
    except ValueError as error:
        if _CUT.search(str(error)):
            raise OSError(f"truncated: {error}") from None
        return str(error) if _DAMAGED.search(str(error)) else ""
    return ""


def encode(pixels: Pixels, *, quality: int) -> bytes:
    """A file of pixels (height, width, 3), its colours at half the resolution as is usual."""
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels, quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return encoded
