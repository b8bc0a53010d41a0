"""From the stored bytes of an image to the pixels that a model sees, by one recipe.

A pure function of the bytes, the recipe and the key of the sample; runs in loader workers, which
need neither torch nor a config library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from training.augment.crop import Box, center_box, padded_offsets, random_box
from training.augment.draws import BatchDraws, Draws, Purpose
from training.augment.erasing import erase
from training.augment.policies import auto_augment_cifar10, rand_augment
from training.augment.stored import Stored, open_stored, resized, whole_jpeg
from training.augment.upright import MAX_PIXELS

Pixels = npt.NDArray[np.uint8]
Window = tuple[slice | int, ...]
"""Rows, columns and, if one alone, a colour."""


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
    max_pixels: int = MAX_PIXELS
    """Of an image that the pipeline has not prepared; a larger one is at fault."""


def render(encoded: bytes | memoryview, recipe: Recipe, key: int) -> Pixels:
    """Decode an image and follow the recipe: (size, size, 3), RGB.

    Raises:
        Exception: whatever decoders raise for damaged bytes.
    """
    pixels = np.empty((recipe.size, recipe.size, 3), np.uint8)
    Renderer(recipe, [key]).render(0, encoded, pixels)
    return pixels


class Renderer:
    """Follows a recipe for some images; what can be is drawn for all at once.

    Of an image of CIFAR-10 numbers drawn one by one took 3 us, its decoding takes 11.
    """

    def __init__(self, recipe: Recipe, keys: Sequence[int]) -> None:
        self.recipe = recipe
        self.keys = keys
        own = np.array(keys, np.uint64)
        offsets = padded_offsets(recipe.padding, BatchDraws(own, Purpose.CROP))
        offsets *= recipe.crop == "random_padded"
        self._offsets = [(right, down) for right, down in offsets.tolist()]
        whole = recipe.crop == "random_padded" or recipe.crop == "center" and recipe.crop_ratio == 1
        self._wants_whole = whole and recipe.of_dataset
        self._flips = BatchDraws(own, Purpose.FLIP).chance(recipe.horizontal_flip).tolist()

    def render(self, number: int, encoded: bytes | memoryview, pixels: Pixels) -> None:
        """Fill pixels (size, size, 3) with what becomes of the image with this number.

        Raises:
            Exception: whatever decoders raise for damaged bytes.
        """
        recipe, key = self.recipe, self.keys[number]
        square = whole_jpeg(encoded, recipe.size) if self._wants_whole else None
        if square is None:
            square = _cut(encoded, recipe, key)
        _place(square, pixels, self._offsets[number], flips=self._flips[number])
        if recipe.policy != "none":
            pixels[:] = np.asarray(_follow_policy(PIL.Image.fromarray(pixels), recipe, key))
        if recipe.erasing:
            draws = Draws(key, Purpose.ERASING)
            if draws.chance(recipe.erasing):
                erase(pixels, draws)


def _cut(encoded: bytes | memoryview, recipe: Recipe, key: int) -> Pixels:
    of_dataset, most = recipe.of_dataset, recipe.max_pixels
    stored = open_stored(encoded, of_dataset=of_dataset, max_pixels=most)
    return resized(stored, _box(stored, recipe, key), recipe.size)


def _box(stored: Stored, recipe: Recipe, key: int) -> Box:
    width, height = stored.size
    if recipe.crop == "random_resized":
        draws = Draws(key, Purpose.CROP)
        area, bound = recipe.area, recipe.max_aspect_ratio
        return random_box(width, height, draws, area=area, max_aspect_ratio=bound)
    return center_box(width, height, recipe.crop_ratio if recipe.crop == "center" else 1.0)


def _place(square: Pixels, shown: Pixels, offset: tuple[int, int], *, flips: bool) -> None:
    """What a window over the square shows that is moved right and down, black outside; flipped."""
    if offset != (0, 0):
        shown.fill(0)
    for to, source in _windows(len(shown), offset, flips=flips):
        shown[to] = square[source]


@lru_cache(maxsize=4096)
def _windows(size: int, offset: tuple[int, int], *, flips: bool) -> list[tuple[Window, Window]]:
    """Where pixels come to, and where from; nowhere, where the window has left the square."""
    if max(map(abs, offset)) >= size:
        return []
    (to_x, from_x), (to_y, from_y) = (_overlap(size, by) for by in offset)
    if not flips:
        return [((to_y, to_x), (from_y, from_x))]
    to_x = slice(size - to_x.stop, size - to_x.start)
    from_x = slice(from_x.stop - 1, from_x.start - 1 if from_x.start else None, -1)
    # Numpy copies whole colours backwards in a sixth of the time of pixels.
    return [((to_y, to_x, colour), (from_y, from_x, colour)) for colour in range(3)]


def _overlap(size: int, by: int) -> tuple[slice, slice]:
    """Along one side, where pixels come to and where from; moved by less than its size."""
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
