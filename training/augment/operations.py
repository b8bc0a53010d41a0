"""The operations of AutoAugment and RandAugment on 8-bit RGB images, each by a strength of 0 to 1.

Ranges are those of the papers' ImageNet and CIFAR code, as torchvision has them: shear 0.3, turn
30 degrees, shift 150/331 of the side, colour factors 1 +- 0.9, solarize from 255 down to 0,
posterize from 8 down to 4 bits. Of the geometric and the colour operations half are reversed.

Pixels are those of Pillow's `ImageOps` and `ImageEnhance`, which make their tables of 256 values in
Python: 183 us for the automatic contrast of 32 x 32 pixels, here 60.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import mul

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageEnhance

Colour = tuple[int, int, int]
Image = PIL.Image.Image

MAX_SHEAR = 0.3
MAX_SHIFT = 150 / 331
MAX_DEGREES = 30.0
MAX_FACTOR = 0.9
FEW_PIXELS = 96**2
"""Up to which bytes are translated faster than `Image.point` rounds the 768 numbers of a table."""


def apply(image: Image, name: str, strength: float, *, reverse: bool, fill: Colour) -> Image:
    """The image behind one operation of `GEOMETRIC`, `ENHANCING` or `PLAIN`.

    `fill` is the colour of what a geometric operation brings in from outside of the image.
    """
    signed = -strength if reverse else strength
    if name in GEOMETRIC:
        return GEOMETRIC[name](image, signed, fill)
    if name in ENHANCING:
        return ENHANCING[name](image, 1 + MAX_FACTOR * signed)
    return PLAIN[name](image, strength)


def _affine(image: Image, matrix: tuple[float, ...], fill: Colour) -> Image:
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, fillcolor=fill)


def _turn(image: Image, signed: float, fill: Colour) -> Image:
    return image.rotate(MAX_DEGREES * signed, fillcolor=fill)


def _contrast(image: Image, factor: float) -> Image:
    """Away from the mean of the grey image, or towards it."""
    counts = image.convert("L").histogram()
    mean = int(sum(map(mul, counts, range(256))) / sum(counts) + 0.5)
    return PIL.Image.blend(PIL.Image.new("RGB", image.size, (mean,) * 3), image, factor)


def _auto_contrast(image: Image) -> Image:
    """Each colour stretched over all values."""
    extrema = [band.getextrema() for band in image.split()]
    return _by_tables(image, [_stretched(*ends) for ends in extrema])


def _equalize(image: Image) -> Image:
    """Each colour's values in equal numbers."""
    counts = np.array(image.histogram())
    return _by_tables(image, [_equalized(counts[at : at + 256]) for at in (0, 256, 512)])


def _equalized(counts: npt.NDArray[np.int64]) -> bytes:
    """The table for a colour whose values occur so often; the last is not counted, as in Pillow."""
    before = counts.cumsum()
    before -= counts
    step = int(before[counts.nonzero()[0][-1]]) // 255
    if not step:
        return bytes(range(256))
    before += step // 2
    before //= step
    return bytes(np.minimum(before, 255, out=before).astype(np.uint8))


@lru_cache(maxsize=4096)
def _stretched(low: int, high: int) -> bytes:
    """The table that spreads values from `low` to `high` over all."""
    if high <= low:
        return bytes(range(256))
    scale = 255 / (high - low)
    return bytes(min(max(int(value * scale - low * scale), 0), 255) for value in range(256))


def _by_table(image: Image, table: bytes) -> Image:
    """All colours by one table."""
    if image.width * image.height > FEW_PIXELS:
        return image.point(table * len(image.getbands()))
    return PIL.Image.frombytes(image.mode, image.size, image.tobytes().translate(table))


def _by_tables(image: Image, tables: list[bytes]) -> Image:
    """Each colour by a table of its own."""
    if image.width * image.height > FEW_PIXELS:
        return image.point(b"".join(tables))
    bands = [_by_table(band, table) for band, table in zip(image.split(), tables, strict=True)]
    return PIL.Image.merge("RGB", bands)


@lru_cache(maxsize=16)
def _posterized(bits: int) -> bytes:
    return bytes(value & ~(2 ** (8 - bits) - 1) for value in range(256))


@lru_cache(maxsize=512)
def _solarized(threshold: int) -> bytes:
    return bytes(value if value < threshold else 255 - value for value in range(256))


GEOMETRIC: dict[str, Callable[[Image, float, Colour], Image]] = {
    "shear_x": lambda image, s, fill: _affine(image, (1, MAX_SHEAR * s, 0, 0, 1, 0), fill),
    "shear_y": lambda image, s, fill: _affine(image, (1, 0, 0, MAX_SHEAR * s, 1, 0), fill),
    "translate_x": lambda image, s, fill: _affine(
        image, (1, 0, -int(MAX_SHIFT * image.width * s), 0, 1, 0), fill
    ),
    "translate_y": lambda image, s, fill: _affine(
        image, (1, 0, 0, 0, 1, -int(MAX_SHIFT * image.height * s)), fill
    ),
    "rotate": _turn,
}
ENHANCING: dict[str, Callable[[Image, float], Image]] = {
    "brightness": lambda image, factor: PIL.ImageEnhance.Brightness(image).enhance(factor),
    "color": lambda image, factor: PIL.ImageEnhance.Color(image).enhance(factor),
    "contrast": _contrast,
    "sharpness": lambda image, factor: PIL.ImageEnhance.Sharpness(image).enhance(factor),
}
PLAIN: dict[str, Callable[[Image, float], Image]] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: _auto_contrast(image),
    "equalize": lambda image, _: _equalize(image),
    "invert": lambda image, _: _by_table(image, _solarized(0)),
    "posterize": lambda image, s: _by_table(image, _posterized(8 - round(4 * s))),
    "solarize": lambda image, s: _by_table(image, _solarized(round(255 * (1 - s)))),
}
