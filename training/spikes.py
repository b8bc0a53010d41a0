"""Steps that are unlike those before, by their loss or gradient norm: OLMo's SkipStepAdamW's rule.

A value is a spike where it lies more than 6 standard deviations above the mean of the 128 steps
before; the first half of these are only looked at. A spike itself enters as the limit that it
broke, unlike there: one of a hundred deviations would hide the next ones, and a level that stays is
soon the usual one all the same.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["nonfinite", "loss_spike", "grad_norm_spike"]
KINDS: tuple[Kind, ...] = ("nonfinite", "loss_spike", "grad_norm_spike")


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What is unusual about a step."""

    kinds: tuple[Kind, ...]
    loss: float
    grad_norm: float
    loss_limit: float = math.inf
    """Above it, a loss is a spike."""
    grad_norm_limit: float = math.inf
    """The same of the norm."""

    @property
    def is_finite(self) -> bool:
        """Whether the numbers are, so that they are spikes."""
        return "nonfinite" not in self.kinds

    def __str__(self) -> str:
        """As a clause behind `step N:`."""
        values = {"loss": (self.loss, self.loss_limit)}
        values["gradient norm"] = (self.grad_norm, self.grad_norm_limit)
        clauses = []
        for name, (value, limit) in values.items():
            if not math.isfinite(value):
                clauses.append(f"{name} {value:.4g} is not finite")
            elif value > limit:
                clauses.append(f"{name} {value:.4g} is a spike, above {limit:.4g}")
        return " and ".join(clauses)


class Judge:
    """Compares each step with those before; the same numbers get the same answers on every rank."""

    def __init__(self, *, window_steps: int, sigmas: float) -> None:
        """With 0 `sigmas`, nothing is a spike."""
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=window_steps)
        self.grad_norms: deque[float] = deque(maxlen=window_steps)

    def judge(self, loss: float, grad_norm: float) -> Anomaly | None:
        """What is unusual about a step of these numbers, if anything."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return Anomaly(("nonfinite",), loss, grad_norm)
        limits = self._limit(self.losses), self._limit(self.grad_norms)
        kinds: list[Kind] = ["loss_spike"] if loss > limits[0] else []
        kinds += ["grad_norm_spike"] if grad_norm > limits[1] else []
        return Anomaly(tuple(kinds), loss, grad_norm, *limits) if kinds else None

    def learn(
        self,
        loss: float,
        grad_norm: float,
        loss_limit: float = math.inf,
        grad_norm_limit: float = math.inf,
    ) -> None:
        """Take the numbers of a step up; those of a spike as the limits that they broke."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.losses.append(min(loss, loss_limit))
            self.grad_norms.append(min(grad_norm, grad_norm_limit))

    def _limit(self, values: deque[float]) -> float:
        most = values.maxlen or 0
        if not self.sigmas or len(values) < max(2, most // 2):
            return math.inf
        array = np.array(values)
        return float(array.mean() + self.sigmas * array.std(ddof=1))
