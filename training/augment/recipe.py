"""From the stored bytes of an image to the pixels that a model sees, by one recipe.

A pure function of the bytes, the recipe and the key of the sample; runs in loader workers, which
need neither torch nor a config library.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL.JpegImagePlugin import JpegImageFile

from training.augment.crop import Box, center_box, padded_offset, random_box
from training.augment.draws import Draws, Purpose
from training.augment.erasing import erase
from training.augment.policies import auto_augment_cifar10, rand_augment
from training.augment.upright import open_upright

FORMATS = ("JPEG", "PNG", "WEBP")
"""What a dataset holds, upright and in RGB."""

Pixels = npt.NDArray[np.uint8]

REDUCING_GAP = 2.0
"""A reduced decoding stays so many times larger than wished."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What becomes of an image; every number is of the config, here checked already."""

    size: int
    """Sides of the square that comes out, pixels."""
    crop: Literal["random_resized", "random_padded", "center"] = "center"
    """How the square is cut."""
    crop_ratio: float = 1.0
    """Of `center`: side of the square, as a share of the shorter side."""
    area: tuple[float, float] = (0.08, 1.0)
    """Of `random_resized`: least and largest share of the image's area."""
    max_aspect_ratio: float = 4 / 3
    """Of `random_resized`: between the sides of the box."""
    padding: int = 0
    """Of `random_padded`: pixels on each side of the resized square."""
    horizontal_flip: float = 0.0
    """Probability."""
    policy: Literal["none", "rand_augment", "auto_augment_cifar10"] = "none"
    """Operations behind crop and flip."""
    num_operations: int = 2
    """Of `rand_augment`."""
    magnitude: float = 9.0
    """Of `rand_augment`, 0 to 10."""
    erasing: float = 0.0
    """Probability."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """Colour of what geometric operations bring in from outside of the image."""
    of_dataset: bool = True
    """Whether the pipeline has prepared the image; else of any format, turned or transparent."""


def render(encoded: bytes | memoryview, recipe: Recipe, key: int) -> Pixels:
    """Decode an image and follow the recipe: (size, size, 3), RGB.

    Raises:
        Exception: whatever decoders raise for damaged bytes.
    """
    image = _opened(encoded) if recipe.of_dataset else open_upright(encoded)
    square = _square(image, recipe, Draws(key, Purpose.CROP))
    if recipe.horizontal_flip and Draws(key, Purpose.FLIP).chance(recipe.horizontal_flip):
        square = square.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    square = _follow_policy(square, recipe, key)
    if not recipe.erasing:
        return np.asarray(square)
    pixels = np.array(square)
    draws = Draws(key, Purpose.ERASING)
    if draws.chance(recipe.erasing):
        erase(pixels, draws)
    return pixels


def _opened(encoded: bytes | memoryview) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)


def _square(image: PIL.Image.Image, recipe: Recipe, draws: Draws) -> PIL.Image.Image:
    width, height = image.size
    if recipe.crop == "random_resized":
        box = random_box(
            width, height, draws, area=recipe.area, max_aspect_ratio=recipe.max_aspect_ratio
        )
        return _resized(image, box, recipe.size)
    if recipe.crop == "center":
        return _resized(image, center_box(width, height, recipe.crop_ratio), recipe.size)
    square = _resized(image, center_box(width, height, 1.0), recipe.size)
    right, down = padded_offset(recipe.padding, draws)
    return square.crop((right, down, right + recipe.size, down + recipe.size))  # black outside


def _resized(image: PIL.Image.Image, box: Box, size: int) -> PIL.Image.Image:
    """The box at (size, size): bicubic, antialiased.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where the box stays twice as large as wished: 41 dB of
    what the whole image gives, for a third of the time; down to its size it would be 36 dB.
    """
    width, height = image.size
    across, down = box[2] - box[0], box[3] - box[1]
    if isinstance(image, JpegImageFile) and min(across, down) >= 2 * REDUCING_GAP * size:
        least = REDUCING_GAP * size
        wished = math.ceil(width * least / across), math.ceil(height * least / down)
        image.draft(image.mode, wished)
    image.load()
    colours = image if image.mode == "RGB" else image.convert("RGB")
    x, y = colours.width / width, colours.height / height
    right, bottom = min(box[2] * x, colours.width), min(box[3] * y, colours.height)
    exact = (box[0] * x, box[1] * y, right, bottom)
    if colours.size == (size, size) and exact == (0.0, 0.0, float(size), float(size)):
        return colours
    return colours.resize((size, size), PIL.Image.Resampling.BICUBIC, box=exact)


def _follow_policy(image: PIL.Image.Image, recipe: Recipe, key: int) -> PIL.Image.Image:
    if recipe.policy == "none":
        return image
    draws = Draws(key, Purpose.POLICY)
    if recipe.policy == "auto_augment_cifar10":
        return auto_augment_cifar10(image, draws, fill=recipe.fill)
    return rand_augment(
        image,
        draws,
        num_operations=recipe.num_operations,
        magnitude=recipe.magnitude,
        fill=recipe.fill,
    )
