"""Evaluation: loss and the task's metrics over a fixed set of the validation split."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.data.loader import EvaluationBatches
    from training.engine import Engine
    from training.events import EventFile


from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.objective import Metrics, Summary
from training.step_log import StepLog
from training.trainer import Hook, StepInfo


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `evaluation`."""

    every_steps: int = 500
    """Evaluate after so many steps, and at the end of the run; 0 never."""
    max_samples: int = 0
    """Evaluate on the first so many samples of the validation split; 0 is all of it."""
    micro_batch_size: int = 0
    """Samples per forward pass on one rank; 0 takes that of training."""

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        for name in ("every_steps", "max_samples", "micro_batch_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")


class EvaluationHook(Hook):
    """Validation loss on every rank's share of the same samples each time."""

    def __init__(
        self,
        engine: "Engine",
        batches: "EvaluationBatches",
        events: "EventFile | None",
        *,
        summarise: Callable[[Metrics], Summary],
        every_steps: int,
        run_dir: Path,
        averaged: bool = False,
    ) -> None:
        """Where `averaged`, the model has the average of its weights, and the log another name."""
        self.engine = engine
        self.batches = batches
        self.events = events
        self.summarise = summarise
        self.every_n_steps = every_steps
        self.averaged = averaged
        self.log = StepLog(run_dir / ("evaluation_ema.jsonl" if averaged else "evaluation.jsonl"))
        self.best = math.inf

    def on_start(self, state: RunState) -> None:
        """Take up the evaluations before the checkpoint that the run continues from."""
        if distributed.is_rank_zero():
            rows = self.log.cut_behind(state.step)
            self.best = min((row["loss"] for row in rows), default=math.inf)

    def on_step(self, info: StepInfo) -> None:
        """Evaluate, print, and write to TensorBoard and the log."""
        started = time.perf_counter()
        with self.engine.averaged() if self.averaged else contextlib.nullcontext():
            num_targets, means = self.engine.evaluate(self.batches)
        summary = self.summarise(means)
        self.best = min(self.best, summary.scalars["loss"])
        # Ranks that share a sample name it each, and batches that are filled up repeat one.
        replaced = len(set().union(*distributed.gather(self.batches.damage.replaced)))
        if not distributed.is_rank_zero():
            return
        step = info.state.step
        row = {"step": step, **summary.scalars, "num_targets": num_targets, "replaced": replaced}
        self.log.append([row])
        if self.events is not None:
            self._show(self.events, summary, step)
        say(
            f"validation {'of averaged weights ' if self.averaged else ''}at step {step}: "
            f"{summary.line} over {num_targets:,} targets in "
            f"{time.perf_counter() - started:.1f} s; best loss so far {self.best:.4f}"
        )

    def _show(self, events: "EventFile", summary: Summary, step: int) -> None:
        group = "validation_ema" if self.averaged else "validation"
        scalars = {f"{group}/{name}": value for name, value in sorted(summary.scalars.items())}
        events.add_scalars(scalars, step)
        for name, picture in summary.pictures.items():
            events.add_picture(f"{group}/{name}", picture, step)
        events.flush()

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()
