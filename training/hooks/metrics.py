"""Metrics: of every step into `metrics.jsonl`, of every n-th to the console and to TensorBoard.

Tensors of the steps between are kept unread, so that no step waits for the device because of a
number.
"""

import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.events import EventFile

SCALARS = ("loss", "learning_rate", "grad_norm", "skipped_steps", "loss_scale", "samples_seen")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `logging`."""

    every_steps: int = 10
    """Read and print metrics after so many steps."""

    def __post_init__(self) -> None:
        """Refuse numbers below one."""
        if self.every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, found {self.every_steps}")


class MetricsHook(Hook):
    """Writes metrics on rank 0."""

    pauses_training = False  # reading a loss waits for the device, which is training's own time

    def __init__(
        self,
        run_dir: Path,
        events: "EventFile | None",
        *,
        every_steps: int,
        global_batch_size: int,
        unit: str,
        units_per_sample: int,
    ) -> None:
        """Speed is counted in `unit`, tokens or images, of which a sample holds so many."""
        self.log = StepLog(run_dir / "metrics.jsonl")
        self.events = events
        self.report_every = every_steps
        self.global_batch_size = global_batch_size
        self.unit = unit
        self.units_per_sample = units_per_sample
        self.unread: list[StepInfo] = []
        self.unreported: list[dict[str, Any]] = []
        self.before = (0.0, 0.0)

    def on_start(self, state: RunState) -> None:
        """Drop the rows behind the checkpoint that the run continues from."""
        if distributed.is_rank_zero():
            self.log.cut_behind(state.step)

    def on_step(self, info: StepInfo) -> None:
        """Keep the step; read and write all kept ones when it is time."""
        if not distributed.is_rank_zero():
            return
        self.unread.append(info)
        if info.state.step % self.report_every == 0 or info.is_last or info.is_stopped:
            self._read()
            self._report(info)

    def on_end(self) -> None:
        """Write what was kept, also behind an error."""
        self.settle()
        self.log.close()
        if self.events is not None:
            self.events.close()

    def settle(self) -> None:
        """Write what was kept: a checkpoint must not be ahead of the metrics."""
        if self.unread:
            self._read()
        if self.events is not None:
            self.events.flush()

    def _read(self) -> None:
        losses = torch.stack([info.result.loss for info in self.unread]).tolist()
        rows = [_row(info, loss) for info, loss in zip(self.unread, losses, strict=True)]
        self.log.append(rows)
        self._scalars(rows)
        self.unreported += rows
        self.unread = []

    def _report(self, info: StepInfo) -> None:
        rows, self.unreported = self.unreported, []
        row = rows[-1]
        seconds, waited = info.seconds - self.before[0], info.data_wait_seconds - self.before[1]
        self.before = (info.seconds, info.data_wait_seconds)
        units_per_second = len(rows) * self.global_batch_size * self.units_per_sample / seconds
        speed = {
            f"{self.unit}_per_second": units_per_second,
            "step_seconds": seconds / len(rows),
            "data_wait_share": waited / seconds,
            "memory_gib": _memory_gib(),
        }
        left = (info.num_steps - info.state.step) * speed["step_seconds"]
        skipped = f"  skipped {row['skipped_steps']}" if row["skipped_steps"] else ""
        say(
            f"step {row['step']:>{len(str(info.num_steps))}}/{info.num_steps}  "
            f"loss {row['loss']:.4f}  learning rate {row['learning_rate']:.2e}  "
            f"gradient norm {row['grad_norm']:.2f}  {units_per_second:,.0f} {self.unit}/s  "
            f"data wait {speed['data_wait_share']:.1%}  {_clock(left)} left{skipped}"
        )
        if not all(math.isfinite(each["loss"]) for each in rows):
            say(f"warning: a loss among steps {rows[0]['step']} to {row['step']} is not finite")
        if self.events is not None:
            scalars = {f"speed/{name}": value for name, value in speed.items()}
            self.events.add_scalars(scalars, row["step"])
            self.events.flush()

    def _scalars(self, rows: list[dict[str, Any]]) -> None:
        if self.events is None:
            return
        for row in rows:
            self.events.add_scalars({f"train/{name}": row[name] for name in SCALARS}, row["step"])


def _row(info: StepInfo, loss: float) -> dict[str, Any]:
    return {
        "step": info.state.step,
        "loss": loss,
        "grad_norm": float(info.result.grad_norm),
        "learning_rate": info.learning_rate,
        "loss_scale": info.result.loss_scale,
        "skipped_steps": info.state.skipped_steps,
        "samples_seen": info.state.samples_seen,
        "num_targets": int(info.result.num_targets),
    }


def _memory_gib() -> float:
    """Peak memory of this rank: of the device, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
