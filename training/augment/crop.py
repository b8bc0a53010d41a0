"""Which part of an image the model sees: boxes in pixels, as (left, top, right, bottom)."""

import math

import numpy as np

from training.augment.draws import BatchDraws, Draws
from training.data.order import Ints

Box = tuple[float, float, float, float]

TRIES = 10
"""Boxes that are drawn before the centre is taken, as in torchvision and timm."""


def random_box(
    width: int, height: int, draws: Draws, *, area: tuple[float, float], max_aspect_ratio: float
) -> Box:
    """RandomResizedCrop: a share of the area uniform in `area`, an aspect ratio (width / height)
    log-uniform between 1 / max_aspect_ratio and max_aspect_ratio, a uniform place.

    Where none of ten boxes fits, the largest one at the centre with an allowed aspect ratio.
    """
    bound = math.log(max_aspect_ratio)
    for _ in range(TRIES):
        pixels = width * height * draws.uniform(*area)
        ratio = math.exp(draws.uniform(-bound, bound))
        across, down = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draws.below(width - across + 1), draws.below(height - down + 1)
            return left, top, left + across, top + down
    return _central(
        width,
        height,
        min(width, round(height * max_aspect_ratio)),
        min(height, round(width * max_aspect_ratio)),
    )


def center_box(width: int, height: int, ratio: float) -> Box:
    """The central square of `ratio` times the shorter side: a resize and a central crop in one.

    640 x 480 at 0.875 -> 420 pixels, which 224 of a shorter side of 256 are.
    """
    side = min(width, height) * ratio
    return _central(width, height, side, side)


def padded_offsets(padding: int, draws: BatchDraws) -> Ints:
    """How far crops with padding move right and down, (samples, 2): -padding to padding each."""
    right, down = draws.below(2 * padding + 1), draws.below(2 * padding + 1)
    return np.stack((right, down), axis=1) - padding


def _central(width: int, height: int, across: float, down: float) -> Box:
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
