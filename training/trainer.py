"""The training loop, in the order things happen; everything else is a hook.

The trainer knows neither models nor tasks nor files: it takes micro batches, makes steps, and tells
the hooks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from training.checkpoint import RunState
from training.objective import MicroBatch

if TYPE_CHECKING:
    from training.engine import Engine
    from training.step_result import StepResult


class Batches(Protocol):
    """This rank's micro batches of one optimizer step after another, for ever."""

    def __next__(self) -> list[MicroBatch]: ...

    @property
    def wait_seconds(self) -> float:
        """Time that training has waited for data so far."""
        ...


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What a hook is told after a step."""

    state: RunState
    """The run behind this step."""
    num_steps: int
    """Steps of the whole run."""
    learning_rate: float
    """Of this step."""
    result: "StepResult"
    """What the step did."""
    seconds: float
    """Spent on training since the run started or resumed, without hooks that pause it."""
    data_wait_seconds: float
    """Of those, waiting for data."""

    @property
    def is_last(self) -> bool:
        """Whether the run ends with this step."""
        return self.state.step == self.num_steps

    @property
    def is_stopped(self) -> bool:
        """Whether it ends with this step before its last one: the next start goes on."""
        return self.result.wants_stop and not self.is_last


class Hook:
    """Something that happens beside training; called on every rank, in order.

    The points are `on_start`, `before_step`, `on_step` and `on_end`.
    """

    every_n_steps: int = 1
    """`on_step` is called after each n-th step and after the last; 0 only after the last."""
    pauses_training: bool = True
    """Its time counts as a pause, and not into the speed of training."""

    def on_start(self, state: RunState) -> None:
        """Before the first step of this process."""

    def before_step(self) -> None:
        """Before each step, and before its batch is waited for."""

    def on_step(self, info: StepInfo) -> None:
        """After an optimizer step, where `is_due`."""

    def is_due(self, info: StepInfo) -> bool:
        """Whether `on_step` is called behind this step."""
        every = self.every_n_steps
        return info.is_last or (every > 0 and info.state.step % every == 0)

    def on_end(self) -> None:
        """After the last step, or behind an error."""


class Trainer:
    """Takes steps until `num_steps` are done."""

    def __init__(
        self,
        engine: "Engine",
        batches: Batches,
        *,
        state: RunState,
        num_steps: int,
        global_batch_size: int,
        learning_rate: Callable[[int], float],
        hooks: Sequence[Hook],
    ) -> None:
        self.engine = engine
        self.batches = batches
        self.state = state
        self.num_steps = num_steps
        self.global_batch_size = global_batch_size
        self.learning_rate = learning_rate
        self.hooks = hooks

    def fit(self) -> RunState:
        """Train from the current state to the last step, or until some rank wishes to stop.

        Returns the state behind the last step taken.
        """
        try:
            for hook in self.hooks:
                hook.on_start(self.state)
            started, paused = time.perf_counter(), 0.0
            for step in range(self.state.step + 1, self.num_steps + 1):
                for hook in self.hooks:
                    hook.before_step()
                batches = next(self.batches)
                learning_rate = self.learning_rate(step)
                result = self.engine.train_step(batches, learning_rate)
                self.state = self._advance(result)
                seconds = time.perf_counter() - started - paused
                waited = self.batches.wait_seconds
                info = StepInfo(self.state, self.num_steps, learning_rate, result, seconds, waited)
                for hook in self.hooks:
                    if hook.is_due(info):
                        paused += self._call(hook, info)
                if info.is_stopped:
                    break
        finally:
            for hook in self.hooks:
                hook.on_end()
        return self.state

    def _call(self, hook: Hook, info: StepInfo) -> float:
        """Call a hook; how long training paused for it, seconds."""
        before = time.perf_counter()
        hook.on_step(info)
        return time.perf_counter() - before if hook.pauses_training else 0.0

    def _advance(self, result: "StepResult") -> RunState:
        return replace(
            self.state,
            step=self.state.step + 1,
            samples_seen=self.state.samples_seen + self.global_batch_size,
            skipped_steps=self.state.skipped_steps + result.skipped,
        )
