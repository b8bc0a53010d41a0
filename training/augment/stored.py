"""Boxes of stored images at one size: decoded no larger than need be, resized with antialiasing.

The usual JPEG goes through libjpeg-turbo's own interface, all else through Pillow, which also
judges files with a fault.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg
from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)
from PIL.JpegImagePlugin import JpegImageFile

from training.augment.crop import Box
from training.augment.upright import MAX_PIXELS, open_upright

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")
"""What a dataset holds, upright and in RGB."""
REDUCING_GAP = 2
"""A reduced decoding stays so many times larger than wished: 41 dB of what the whole image gives,
for a third of the time; down to its size it would be 36 dB."""
_HEAD_BYTES = 1024
"""Of a small JPEG the header ends before; one behind metadata is no small file."""
_BICUBIC = ResizeAlg.convolution(FilterType.catmull_rom)
_RESIZER = Resizer()


class Stored(NamedTuple):
    """An image of which the header was read."""

    encoded: bytes | memoryview
    """The file."""
    size: tuple[int, int]
    """Width and height, pixels."""
    opened: PIL.Image.Image | None
    """By Pillow; None: a usual JPEG."""


def open_stored(
    encoded: bytes | memoryview, *, of_dataset: bool, max_pixels: int = MAX_PIXELS
) -> Stored:
    """Read the header of an image.

    Args:
        encoded: the file.
        of_dataset: whether the pipeline has prepared it; else of any format, turned or transparent.
        max_pixels: of one that the pipeline has not prepared.

    Raises:
        Exception: whatever decoders raise for damaged bytes.
    """
    if of_dataset and (size := _size_of_jpeg(encoded)):
        return Stored(encoded, size, None)
    opened = _open(encoded) if of_dataset else open_upright(encoded, max_pixels=max_pixels)
    return Stored(encoded, opened.size, opened)


def resized(stored: Stored, box: Box, side: int) -> Pixels:
    """The box of an image as pixels (side, side, 3): bicubic, antialiased.

    Raises:
        Exception: as `open_stored`.
    """
    whole: Box = (0, 0, side, side)
    if stored.size == (side, side) and box == whole:
        return _decode(stored, 1)
    width, height = stored.size
    smallest = min(box[2] - box[0], box[3] - box[1])
    shrink = next((by for by in (8, 4, 2) if smallest >= by * REDUCING_GAP * side), 1)
    pixels = _decode(stored, shrink)
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    return _resize(pixels, (box[0] * x, box[1] * y, box[2] * x, box[3] * y), side)


def whole_jpeg(encoded: bytes | memoryview, side: int) -> Pixels | None:
    """The pixels of a usual JPEG of sides `side`, which are `resized`'s for the whole of it.

    None for what is another image at the first look: to read the header takes 2 us, the rest of
    an image of CIFAR-10 16. Only a baseline JPEG of three colours is looked for.
    """
    start_of_frame = b"\xff\xc0\0\x11\x08" + side.to_bytes(2, "big") * 2 + b"\x03"
    if start_of_frame not in bytes(encoded[:_HEAD_BYTES]):
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(encoded, colorspace="RGB")
    except ValueError:
        return None  # a fault; some Pillow puts up with
    return pixels if pixels.shape == (side, side, 3) else None


def _open(encoded: bytes | memoryview) -> PIL.Image.Image:
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit was the pipeline's, `images.decode.max_pixels`
    return PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)


def _size_of_jpeg(encoded: bytes | memoryview) -> tuple[int, int] | None:
    if encoded[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    usual = colours in ("YCbCr", "Gray", "RGB") and width * height <= MAX_PIXELS
    return (width, height) if usual else None


def _decode(stored: Stored, shrink: int) -> Pixels:
    width, height = stored.size
    if stored.opened is None:
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                stored.encoded, colorspace="RGB", **(least if shrink > 1 else {})
            )
        except ValueError:
            pass  # a fault; some Pillow puts up with
        else:
            return pixels
    image = stored.opened or _open(stored.encoded)
    if shrink > 1 and isinstance(image, JpegImageFile):
        image.draft(image.mode, (width // shrink, height // shrink))
    image.load()
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _resize(pixels: Pixels, box: Box, side: int) -> Pixels:
    height, width = pixels.shape[:2]
    left, top, right, bottom = box[0], box[1], min(box[2], width), min(box[3], height)
    if (width, height) == (side, side) and (left, top, right, bottom) == (0, 0, side, side):
        return pixels
    options = ResizeOptions(_BICUBIC, crop_box=CropBox(left, top, right - left, bottom - top))
    source = ImageData(width, height, PixelType.U8x3, pixels.tobytes())
    target = _target(side)
    _RESIZER.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(side, side, 3)


@lru_cache(maxsize=4)
def _target(side: int) -> ImageData:
    """What is resized into, and copied from: to allocate and clear it anew takes as long again."""
    return ImageData(side, side, PixelType.U8x3)
