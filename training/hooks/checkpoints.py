"""Writes checkpoints, and removes old ones."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from training.checkpoint import Config, remove_old
from training.console import say
from training.host_memory import HostMemory
from training.memory.machine import GIB
from training.saving import Saving
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.engine import Engine


class CheckpointHook(Hook):
    """A checkpoint after every n-th step, after the last, and where the run stops before it."""

    def __init__(
        self,
        checkpoints_dir: Path,
        engine: "Engine",
        settings: Config,
        *,
        config: str,
        settle: Callable[[], None],
    ) -> None:
        self.checkpoints_dir = checkpoints_dir
        self.engine = engine
        self.settings = settings
        # In between it asks whether the one in the background is written.
        self.every_n_steps = 1 if settings.asynchronous else settings.every_steps
        self.config = config
        self.settle = settle
        """Writes what other hooks still hold: a run that resumes here does not do it again."""
        self.memory = HostMemory()
        self.saving: Saving | None = None
        """The one that is written in the background."""
        self.started = self.waited = 0.0
        """When it was taken, and how long training has waited for it; seconds."""

    def is_due(self, info: StepInfo) -> bool:
        """Also behind a step with which the run stops."""
        return super().is_due(info) or info.is_stopped

    def on_step(self, info: StepInfo) -> None:
        """Take a checkpoint of the state behind this step; publish the one that is written.

        Raises:
            OSError: no space for the last one of this process.
        """
        step, every = info.state.step, self.settings.every_steps
        ends = info.is_last or info.is_stopped
        is_due = ends or (every > 0 and step % every == 0)
        if self.saving and (is_due or self._is_written(self.saving)):
            self._publish(step if is_due else self._following(info))
        if is_due:
            self._take(info, ends=ends)

    def on_end(self) -> None:
        """Behind an error one may be in the background still; other ranks may not come."""
        if self.saving:
            self.saving.abandon()

    def publish(self, info: StepInfo) -> None:
        """Wait for the one in the background, if there is any; every rank calls it."""
        self._publish(self._following(info))

    def _publish(self, following: int) -> None:
        if not self.saving:
            return
        saving, self.saving = self.saving, None
        asked = time.perf_counter()
        try:
            path = saving.finish()
        except OSError as error:
            _warn(error, following)
            return
        self._remove_old(path)
        now = time.perf_counter()
        say(
            f"checkpoint {path} written in {now - self.started:.1f} s in the background, out of "
            f"{self.memory.num_bytes / GIB:.2f} GiB of host memory on rank 0; "
            f"training waited {self.waited + now - asked:.2f} s"
        )

    def _take(self, info: StepInfo, *, ends: bool) -> None:
        """A run that has no space for it goes on, unless it ends here.

        What it has learned is worth more than the ones before, and somebody may make room.
        """
        self.started = time.perf_counter()
        self.settle()
        try:
            if self.settings.asynchronous and not ends:
                self.saving = self._save(info, self.memory)
                self.waited = time.perf_counter() - self.started
                return
            path = self._save(info, None).finish()
        except OSError as error:
            if ends:
                raise
            _warn(error, self._following(info))
            return
        self._remove_old(path)
        say(f"checkpoint {path} written in {time.perf_counter() - self.started:.1f} s")

    def _is_written(self, saving: Saving) -> bool:
        started = time.perf_counter()
        answer = saving.is_written()
        self.waited += time.perf_counter() - started
        return answer

    def _save(self, info: StepInfo, memory: HostMemory | None) -> Saving:
        take = self.engine.take_files
        return Saving(self.checkpoints_dir, info.state, take, self.config, memory=memory)

    def _remove_old(self, newest: Path) -> None:
        settings = self.settings
        remove_old(newest, keep=settings.keep, keep_every_steps=settings.keep_every_steps)

    def _following(self, info: StepInfo) -> int:
        """The step of the next checkpoint."""
        step, every = info.state.step, self.settings.every_steps
        return min(step - step % every + every, info.num_steps) if every else info.num_steps


def _warn(error: OSError, following: int) -> None:
    say(f"warning: {error}; training goes on, the next try is at step {following}")
