"""Random erasing (Zhong et al. 2017): a rectangle of the image becomes noise."""

import math

import numpy as np
import numpy.typing as npt

from training.augment.draws import Draws

AREA = (0.02, 1 / 3)
MAX_ASPECT_RATIO = 1 / 0.3
TRIES = 10


def erase(pixels: npt.NDArray[np.uint8], draws: Draws) -> None:
    """Fill a rectangle of 2 to 33 % of pixels (height, width, 3) with uniform noise, in place."""
    height, width = pixels.shape[:2]
    bound = math.log(MAX_ASPECT_RATIO)
    for _ in range(TRIES):
        area = height * width * draws.uniform(*AREA)
        ratio = math.exp(draws.uniform(-bound, bound))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < down < height and 0 < across < width:
            top, left = draws.below(height - down + 1), draws.below(width - across + 1)
            pixels[top : top + down, left : left + across] = draws.pixels(down, across)
            return
