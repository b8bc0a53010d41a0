"""The exponential moving average of the weights: smoother than the last ones, and often better.

In fp32 beside the fp32 master weights, and partitioned over the ranks as they are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `ema`."""

    decay: float = 0.0
    """Share of the average that a step keeps, below 1, as 0.9999; early steps keep less, (1 + n) /
    (10 + n) after n steps. 0 keeps no average.
    """

    def __post_init__(self) -> None:
        """Refuse an average that never moves."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}; it must be at least 0 and below 1")


class Average:
    """This rank's part of the average."""

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float) -> None:
        """The average begins at the weights, fp32 tensors by name."""
        self.decay = decay
        self.num_updates = 0
        self.means = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Move towards the weights behind a step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        behind = [weight.data for weight in weights.values()]
        torch._foreach_lerp_(list(self.means.values()), behind, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def in_place_of(
        self, weights: Mapping[str, Tensor], publish: Callable[[], None]
    ) -> Iterator[None]:
        """Inside, average and weights change places, without a copy; `publish` is told of it."""
        self._exchange(weights)
        publish()
        try:
            yield
        finally:
            self._exchange(weights)
            publish()

    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            weight.data, self.means[name].data = self.means[name].data, weight.data

    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Begin again at the weights."""
        self.num_updates = 0
        for name, weight in weights.items():
            self.means[name].copy_(weight.data)

    def state_dict(self) -> dict[str, Any]:
        """This rank's part, as a checkpoint holds it."""
        return {"num_updates": self.num_updates, "means": self.means}

    def load(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Read the part that lies there; where a run had none so far, begin at the weights."""
        if not path.exists():
            self.restart(weights)
            return
        state = torch.load(path, weights_only=True)
        self.num_updates = state["num_updates"]
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])


def part_path(checkpoint_dir: Path, rank: int) -> Path:
    """Where a rank's part of the average lies in a checkpoint."""
    return checkpoint_dir / f"ema-{rank:05d}.pt"


def load_parts(checkpoint_dir: Path) -> list[dict[str, Tensor]]:
    """The average's parts of all ranks, by rank.

    Raises:
        FileNotFoundError: the run kept no average.
    """
    paths = sorted(checkpoint_dir.glob("ema-*.pt"))
    if not paths:
        raise FileNotFoundError(
            f"{checkpoint_dir}: holds no average of weights; the run had ema.decay=0"
        )
    return [torch.load(path, map_location="cpu", weights_only=True)["means"] for path in paths]
