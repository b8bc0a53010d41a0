"""Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019): which images are mixed, and how.

Pairs are neighbours in the global batch, rows 2k and 2k + 1, so that ranks and accumulation change
nothing; both rows of a pair share their numbers, which the first row's key decides.
"""

import math

import numpy as np
import numpy.typing as npt

from training.augment.config import Config
from training.augment.draws import Draws, Purpose
from training.data.order import Keys

Plan = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]


def plan_mix(keys: Keys, config: Config, *, image_size: int) -> Plan:
    """How each row of a batch is mixed with its neighbour.

    `share` (rows,) is what stays of the own image, `mix_box` (rows, 4) the box that CutMix fills
    with the neighbour's pixels, as left, top, right, bottom, and empty for mixup.
    """
    shares = np.ones(len(keys), np.float32)
    boxes = np.zeros((len(keys), 4), np.int64)
    for row in range(0, len(keys), 2):
        draws = Draws(int(keys[row]), Purpose.MIX)
        if draws.chance(config.mix_probability):
            pair = slice(row, row + 2)
            shares[pair], boxes[pair] = _mix_of_pair(draws, config, image_size)
    return {"share": shares, "mix_box": boxes}


def check_pairs(config: Config, *, micro_batch_size: int) -> None:
    """Refuse micro batches that would part a pair."""
    if config.mixes and micro_batch_size % 2:
        raise ValueError(
            f"batch.micro_batch_size is {micro_batch_size}, but mixup and CutMix mix pairs; make "
            "it even, or set augment.mixup_alpha=0 and augment.cutmix_alpha=0"
        )


def draw_beta(draws: Draws, alpha: float) -> float:
    """A number of the Beta distribution with both parameters `alpha`, as x / (x + y) of gammas."""
    x, y = draw_gamma(draws, alpha), draw_gamma(draws, alpha)
    return x / (x + y) if x + y > 0 else float(draws.chance(0.5))  # both underflow: all or nothing


def draw_gamma(draws: Draws, shape: float) -> float:
    """A number of the Gamma distribution, by Marsaglia and Tsang (2000)."""
    if shape < 1:
        return float(draw_gamma(draws, shape + 1) * (1 - draws.uniform()) ** (1 / shape))
    d = shape - 1 / 3
    while True:
        normal = _draw_normal(draws)
        v = (1 + normal / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(1 - draws.uniform()) < normal**2 / 2 + d * (1 - v + math.log(v)):
            return d * v


def _mix_of_pair(
    draws: Draws, config: Config, image_size: int
) -> tuple[float, tuple[int, int, int, int]]:
    if config.mixup_alpha and not (config.cutmix_alpha and draws.chance(config.cutmix_probability)):
        return draw_beta(draws, config.mixup_alpha), (0, 0, 0, 0)
    side = image_size * math.sqrt(1 - draw_beta(draws, config.cutmix_alpha))
    x, y = draws.below(image_size), draws.below(image_size)
    left, right = (min(max(round(x + end * side / 2), 0), image_size) for end in (-1, 1))
    top, bottom = (min(max(round(y + end * side / 2), 0), image_size) for end in (-1, 1))
    covered = (right - left) * (bottom - top) / image_size**2  # what the borders have left of it
    return 1 - covered, (left, top, right, bottom)


def _draw_normal(draws: Draws) -> float:
    """By Box and Muller (1958)."""
    radius = math.sqrt(-2 * math.log(1 - draws.uniform()))
    return radius * math.cos(2 * math.pi * draws.uniform())
