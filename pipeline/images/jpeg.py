"""JPEG by the interface of libjpeg-turbo itself: Pillow's pixels in 0.85 of its time.

Files with any fault are left to Pillow, whose judgement of them is the stated rule.
"""

import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]


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


def encode(pixels: Pixels, *, quality: int) -> bytes:
    """A file of pixels (height, width, 3), its colours at half the resolution as is usual."""
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels, quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return encoded
