"""Predicted beside measured peak memory, once the optimizer's states exist."""

import resource
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.memory.machine import GIB
from training.memory.prediction import Prediction
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.events import EventFile

MEASURED_STEPS = 3
"""Of this process: the first makes the optimizer's states, stage 3 prefetches from the second."""


class MemoryHook(Hook):
    """Writes `memory.jsonl` and TensorBoard's `memory/`; stands before hooks that use memory."""

    def __init__(
        self,
        run_dir: Path,
        events: "EventFile | None",
        prediction: Prediction | None,
        *,
        device: torch.device,
    ) -> None:
        """Without a prediction, where there is no formula, the measured peak stands alone."""
        self.log = StepLog(run_dir / "memory.jsonl")
        self.events = events
        self.prediction = prediction
        self.device = device
        self.num_steps = 0

    def on_start(self, state: RunState) -> None:
        """Forget what building the model took."""
        if distributed.is_rank_zero():
            self.log.cut_behind(state.step)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_step(self, info: StepInfo) -> None:
        """After the third step of this process that was taken, or the run's last before it."""
        taken = not info.result.skipped  # fp16 begins with steps that are not
        self.num_steps += taken
        is_due = taken and self.num_steps == MEASURED_STEPS
        if is_due or (info.is_last and self.num_steps < MEASURED_STEPS):
            measured = max(distributed.gather(_measured_bytes(self.device)))
            if distributed.is_rank_zero():
                self._tell(measured, info.state.step)

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()

    def _tell(self, measured: int, step: int) -> None:
        allocated = self.device.type == "cuda"
        row = {"measured_gib" if allocated else "resident_gib": measured / GIB}
        if self.prediction is not None:
            row["predicted_gib"] = self.prediction.peak.num_bytes / GIB
        self.log.append([{"step": step, **row}])
        if self.events is not None:
            self.events.add_scalars({f"memory/{name}": value for name, value in row.items()}, step)
        say(f"memory of a rank: {self._predicted(measured, allocated=allocated)}")

    def _predicted(self, measured: int, *, allocated: bool) -> str:
        predicted = "no formula for this run"
        if self.prediction is not None:
            peak = self.prediction.peak
            predicted = f"predicted {peak.num_bytes / GIB:.2f} GiB in the {peak.moment}"
        if not allocated:
            return (
                f"{predicted}; on a CPU only that of the whole process is known, "
                f"{measured / GIB:.2f} GiB"
            )
        error = ""
        if self.prediction is not None:
            error = f" ({self.prediction.peak.num_bytes / measured - 1:+.1%} predicted)"
        reserved = torch.cuda.max_memory_reserved() / GIB
        return (
            f"{predicted}, measured {measured / GIB:.2f} GiB{error}; reserved by the allocator "
            f"{reserved:.2f} GiB"
        )


def _measured_bytes(device: torch.device) -> int:
    """Peak of this rank: allocated on its device, or resident where that keeps no statistic."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
