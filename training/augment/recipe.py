"""From the stored bytes of an image to the pixels that a model sees, by one recipe.

A pure function of the bytes, the recipe and the key of the sample; runs in loader workers, which
need neither torch nor a config library.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from training.augment.crop import center_box, padded_offset, random_box
from training.augment.draws import Draws, Purpose
from training.augment.erasing import erase
from training.augment.policies import auto_augment_cifar10, rand_augment
from training.augment.stored import Stored, open_stored, resized

Pixels = npt.NDArray[np.uint8]


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
    stored = open_stored(encoded, of_dataset=recipe.of_dataset)
    pixels = _square(stored, recipe, Draws(key, Purpose.CROP))
    if recipe.horizontal_flip and Draws(key, Purpose.FLIP).chance(recipe.horizontal_flip):
        pixels = pixels[:, ::-1]
    if recipe.policy != "none":
        pixels = np.asarray(_follow_policy(PIL.Image.fromarray(pixels), recipe, key))
    if recipe.erasing:
        draws = Draws(key, Purpose.ERASING)
        if draws.chance(recipe.erasing):
            pixels = pixels.copy()
            erase(pixels, draws)
    return pixels


def _square(stored: Stored, recipe: Recipe, draws: Draws) -> Pixels:
    width, height = stored.size
    if recipe.crop == "random_resized":
        box = random_box(
            width, height, draws, area=recipe.area, max_aspect_ratio=recipe.max_aspect_ratio
        )
        return resized(stored, box, recipe.size)
    if recipe.crop == "center":
        return resized(stored, center_box(width, height, recipe.crop_ratio), recipe.size)
    square = resized(stored, center_box(width, height, 1.0), recipe.size)
    return _shifted(square, *padded_offset(recipe.padding, draws))


def _shifted(pixels: Pixels, right: int, down: int) -> Pixels:
    """What a window over the square shows that is moved right and down; black outside."""
    size = len(pixels)
    shown = np.zeros_like(pixels)
    (to_y, from_y), (to_x, from_x) = (_overlap(size, by) for by in (down, right))
    shown[to_y, to_x] = pixels[from_y, from_x]
    return shown


def _overlap(size: int, by: int) -> tuple[slice, slice]:
    """Along one side, where pixels come to and where from."""
    return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by))


def _follow_policy(image: PIL.Image.Image, recipe: Recipe, key: int) -> PIL.Image.Image:
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
