"""The learning rate of every step: linear warmup, then cosine, linear, wsd or constant.

A pure function of the step, so that resuming needs no state. Steps count from 1; the first at the
peak is step warmup_steps + 1. Warmup and cosine are nanoGPT's, whose iterations count from 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the learning rate rises and falls; its peak is the optimizer's."""

    shape: Shape = "cosine"
    """Behind the warmup: cosine or linear to the end, wsd (stable, then decay), or constant."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    decay_steps: int = 0
    """Last steps, in which wsd falls linearly; for wsd alone, others fall from the warmup on."""
    min_learning_rate_ratio: float = 0.1
    """Where the fall ends, as a share of the peak, 0 to 1."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ValueError(
                f"min_learning_rate_ratio is {self.min_learning_rate_ratio}; it must be in 0 to 1"
            )
        if self.shape == "wsd" and self.decay_steps < 1:
            raise ValueError(
                f"shape wsd needs decay_steps of at least 1, found {self.decay_steps}; "
                "a tenth to a fifth of num_steps is usual"
            )
        if self.shape != "wsd" and self.decay_steps != 0:
            raise ValueError(
                f"decay_steps is {self.decay_steps}, but only shape wsd has a decay of its own; "
                f"leave it at 0 for {self.shape}"
            )

    def check(self, num_steps: int) -> None:
        """Raise ValueError if the schedule does not fit into `num_steps`."""
        if self.warmup_steps + self.decay_steps >= num_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} leave "
                f"nothing of num_steps {num_steps}"
            )


def learning_rate(
    step: int,
    *,
    shape: Shape,
    num_steps: int,
    peak_learning_rate: float,
    warmup_steps: int,
    decay_steps: int = 0,
    min_learning_rate_ratio: float = 0.1,
) -> float:
    """The learning rate of a step in 1 .. num_steps.

    >>> learning_rate(1, shape="cosine", num_steps=2000, peak_learning_rate=1e-3, warmup_steps=99)
    1e-05
    """
    if step <= warmup_steps:
        return peak_learning_rate * step / (warmup_steps + 1)
    first = num_steps - decay_steps if shape == "wsd" else warmup_steps
    # The first falling step is the last at the peak, and the step behind num_steps would be the
    # minimum: no step is spent on a rate of 0 when min_learning_rate_ratio is 0.
    progress = min(1.0, max(0.0, (step - 1 - first) / max(1, num_steps - first)))
    minimum = peak_learning_rate * min_learning_rate_ratio
    return minimum + _remaining(shape, progress) * (peak_learning_rate - minimum)


def _remaining(shape: Shape, progress: float) -> float:
    """Share of the way from the minimum to the peak that is left at `progress` of the fall."""
    if shape == "constant":
        return 1.0
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress
