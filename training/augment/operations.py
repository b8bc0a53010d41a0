"""The operations of AutoAugment and RandAugment on 8-bit RGB images, each by a strength of 0 to 1.

Ranges are those of the papers' ImageNet and CIFAR code, as torchvision has them: shear 0.3, turn
30 degrees, shift 150/331 of the side, colour factors 1 +- 0.9, solarize from 255 down to 0,
posterize from 8 down to 4 bits. Of the geometric and the colour operations half are reversed.
"""

from collections.abc import Callable

import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

Colour = tuple[int, int, int]
Image = PIL.Image.Image

MAX_SHEAR = 0.3
MAX_SHIFT = 150 / 331
MAX_DEGREES = 30.0
MAX_FACTOR = 0.9


def apply(image: Image, name: str, strength: float, *, reverse: bool, fill: Colour) -> Image:
    """The image behind one operation of `GEOMETRIC`, `ENHANCING` or `PLAIN`.

    `fill` is the colour of what a geometric operation brings in from outside of the image.
    """
    signed = -strength if reverse else strength
    if name in GEOMETRIC:
        return GEOMETRIC[name](image, signed, fill)
    if name in ENHANCING:
        return ENHANCING[name](image).enhance(1 + MAX_FACTOR * signed)
    return PLAIN[name](image, strength)


def _affine(image: Image, matrix: tuple[float, ...], fill: Colour) -> Image:
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, fillcolor=fill)


def _turn(image: Image, signed: float, fill: Colour) -> Image:
    return image.rotate(MAX_DEGREES * signed, fillcolor=fill)


def _posterize(image: Image, strength: float) -> Image:
    return PIL.ImageOps.posterize(image, 8 - round(4 * strength))


def _solarize(image: Image, strength: float) -> Image:
    return PIL.ImageOps.solarize(image, round(255 * (1 - strength)))


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
ENHANCING = {
    "brightness": PIL.ImageEnhance.Brightness,
    "color": PIL.ImageEnhance.Color,
    "contrast": PIL.ImageEnhance.Contrast,
    "sharpness": PIL.ImageEnhance.Sharpness,
}
PLAIN: dict[str, Callable[[Image, float], Image]] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, _: PIL.ImageOps.equalize(image),
    "invert": lambda image, _: PIL.ImageOps.invert(image),
    "posterize": _posterize,
    "solarize": _solarize,
}
