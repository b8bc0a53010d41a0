"""Pictures to TensorBoard: what the model sees, and what it makes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training import distributed
from training.objective import MicroBatch
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.engine import Engine
    from training.events import EventFile

Draw = Callable[["nn.Module", MicroBatch], dict[str, "torch.Tensor"]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `pictures`."""

    every_steps: int = 0
    """Draw after so many steps, and at the end of the run; 0 never."""
    num_images: int = 8
    """Images shown, the same every time: of classification the first of the train split, augmented
    as in training; of masked autoencoding the first of the validation split.
    """

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if self.every_steps < 0:
            raise ValueError(f"every_steps must be 0 or more, found {self.every_steps}")
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, found {self.num_images}")


class PicturesHook(Hook):
    """Asks the task for pictures of a batch; every rank computes them, since under ZeRO-3 all hold
    a part of the weights.
    """

    def __init__(
        self,
        engine: "Engine",
        draw: Draw,
        batch: MicroBatch,
        events: "EventFile | None",
        *,
        every_steps: int,
    ) -> None:
        self.engine = engine
        self.draw = draw
        self.batch = batch
        self.events = events
        self.every_n_steps = every_steps

    def on_step(self, info: StepInfo) -> None:
        """Draw in evaluation mode."""
        self.engine.deepspeed.eval()
        drawn = self.draw(self.engine.module, self.engine.to_device(self.batch))
        self.engine.deepspeed.train()
        if self.events is None or not distributed.is_rank_zero():
            return
        for name, picture in drawn.items():
            self.events.add_picture(name, picture, info.state.step)
        self.events.flush()
