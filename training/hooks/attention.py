"""Attention to TensorBoard: what the heads look at in the first validation sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.hooks.pictures import PicturesHook
from training.objective import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training.engine import Engine
    from training.events import EventFile

Look = Callable[["nn.Module", MicroBatch], dict[str, "Tensor"]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `attention`."""

    every_steps: int = 0
    """Draw after so many steps, and at the end of the run; 0 never."""

    def __post_init__(self) -> None:
        """Refuse a negative number."""
        if self.every_steps < 0:
            raise ValueError(f"every_steps must be 0 or more, found {self.every_steps}")


def build_attention_hook(
    engine: "Engine", look: Look, batch: MicroBatch, events: "EventFile | None", config: Config
) -> PicturesHook:
    """A hook that draws a picture of all heads for each layer, and one through all layers.

    `look` gives pictures of a batch by name, as `training.attention_maps` does.
    """

    def draw(model: "nn.Module", batch: MicroBatch) -> dict[str, "Tensor"]:
        pictures = look(model, batch)
        return {f"attention/{name}": one for name, one in pictures.items() if "-head-" not in name}

    return PicturesHook(engine, draw, batch, events, every_steps=config.every_steps)
