"""Writes checkpoints, and removes old ones."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.checkpoint import remove_old, save_checkpoint
from training.console import say
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.engine import Engine


class CheckpointHook(Hook):
    """A checkpoint after every n-th step and after the last."""

    def __init__(
        self,
        checkpoints_dir: Path,
        engine: "Engine",
        *,
        every_steps: int,
        keep: int,
        config: str,
        settle: Callable[[], None],
    ) -> None:
        self.checkpoints_dir = checkpoints_dir
        self.engine = engine
        self.every_n_steps = every_steps
        self.keep = keep
        self.config = config
        self.settle = settle
        """Writes what other hooks still hold: a run that resumes here does not do it again."""

    def on_step(self, info: StepInfo) -> None:
        """Write a checkpoint of the state behind this step.

        A run that has no space for it goes on: what it has learned is worth more than the ones
        before, and somebody may make room.

        Raises:
            OSError: no space for the last one.
        """
        started = time.perf_counter()
        self.settle()
        try:
            path = save_checkpoint(self.checkpoints_dir, info.state, self.engine.save, self.config)
        except OSError as error:
            if info.is_last:
                raise
            following = min(info.state.step + self.every_n_steps, info.num_steps)
            say(f"warning: {error}; training goes on, the next try is at step {following}")
            return
        remove_old(path, keep=self.keep)
        say(f"checkpoint {path} written in {time.perf_counter() - started:.1f} s")
