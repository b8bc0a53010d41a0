"""Steps whose numbers are not finite, or spikes: told, with the samples of their batch, and
treated by the policy of the run.

A step that is to be left out is left out before the optimizer takes it, so that no weight and no
moment changes. Each is a row of `anomalies.jsonl`. A rollback goes on from the last good checkpoint
with the batch behind: its row, of the checkpoint's step, tells a run that resumes there the same.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from training import checkpoint, distributed
from training.checkpoint import RunState
from training.console import say
from training.spikes import KINDS, Anomaly, Judge
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    import numpy.typing as npt

    from training.events import EventFile

LOG = "anomalies.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `anomalies`: what to do at steps that are not as those before."""

    nonfinite: Literal["skip", "stop", "rollback"] = "skip"
    """At a loss or a gradient norm that is not finite. Such a step changes no weight: skip goes on
    behind its batch, stop ends the run, rollback goes back to the last good checkpoint, and on
    behind the batch.
    """
    spike: Literal["warn", "skip", "stop", "rollback"] = "warn"
    """At a loss or a gradient norm far above those before; all but warn leave the step out."""
    sigmas: float = 6.0
    """A spike is more than so many standard deviations above the mean; 0 looks for none."""
    window_steps: int = 128
    """Of so many steps before; there are no spikes until half of them are done."""
    max_in_a_row: int = 10
    """So many skipped steps one after another, or rollbacks to one checkpoint, end the run; 0
    never. fp16 counts steps at a loss scale of 1 alone, which cannot fall.
    """

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.sigmas < math.inf:
            raise ValueError(f"sigmas must be 0 or more and finite, found {self.sigmas}")
        if self.window_steps < 2:
            raise ValueError(f"window_steps must be at least 2, found {self.window_steps}")
        if self.max_in_a_row < 0:
            raise ValueError(f"max_in_a_row must be 0 or more, found {self.max_in_a_row}")


class Rollback(Exception):  # noqa: N818  (no error: the run goes on)
    """The run goes on from its last good checkpoint; raised on every rank behind the same step."""


class AnomalyHook(Hook):
    """Decides on every rank alike; writes on rank 0."""

    pauses_training = False

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        events: "EventFile | None",
        *,
        positions: "Callable[[int, int], npt.NDArray[np.int64]]",
        origins: "Callable[[npt.NDArray[np.int64]], dict[str, dict[str, list[str]]]]",
        global_batch_size: int,
        publish: Callable[[StepInfo], None],
    ) -> None:
        """`positions` gives those of a batch, `origins` where their samples come from.

        `publish` waits for a checkpoint that is written in the background: a rollback may go to it,
        and it would be lost with the hooks of the steps that are rolled back.
        """
        self.run_dir = run_dir
        self.config = config
        self.events = events
        self.positions, self.origins = positions, origins
        self.global_batch_size = global_batch_size
        self.publish = publish
        self.log = StepLog(run_dir / LOG)
        self.judge = Judge(window_steps=config.window_steps, sigmas=config.sigmas)
        self.found: Anomaly | None = None
        self.skips = 0
        self.counts: Counter[str] = Counter()

    def on_start(self, state: RunState) -> None:
        """Go on with the numbers of the steps before, as if the run had not been interrupted."""
        rows: list[dict[str, Any]] = []
        steps: list[dict[str, Any]] = []
        if distributed.is_rank_zero():
            rows = self.log.cut_behind(state.step)
            rows_of_steps = StepLog(self.run_dir / "metrics.jsonl").rows()
            steps = list(filter(_is_finite, rows_of_steps))[-self.config.window_steps :]
        rows, steps = distributed.broadcast((rows, steps))
        self.counts = Counter(kind for row in rows for kind in row["kinds"])
        limits = {row["step"]: row for row in rows if not row["rolled_back_from"]}
        for step in steps:
            row = limits.get(step["step"], {})
            names = ("loss_limit", "grad_norm_limit")
            limit = [math.inf if row.get(name) is None else row[name] for name in names]
            self.judge.learn(step["loss"], step["grad_norm"], *limit)

    def before_step(self) -> None:
        """Forget the step before."""
        self.found = None

    def admits(self, loss: float, grad_norm: float) -> bool:
        """Whether the optimizer may take a step of these numbers; asked by the engine before."""
        self.found = self.judge.judge(loss, grad_norm)
        return self.found is None or self._policy(self.found) == "warn"

    def on_step(self, info: StepInfo) -> None:
        """Tell what was found, and treat it.

        Raises:
            ValueError: the run is to stop, or there were too many in a row.
            Rollback: it is to go back.
        """
        loss, grad_norm = float(info.result.loss), float(info.result.grad_norm)
        by_design = info.result.loss_scale > 1 and math.isfinite(loss)  # fp16 looks for its scale
        if self.found is None and info.result.skipped and not by_design:
            self.found = Anomaly(("nonfinite",), loss, grad_norm)
        if self.found is None:
            self.skips = 0
            self.judge.learn(loss, grad_norm)
            return
        self.judge.learn(loss, grad_norm, self.found.loss_limit, self.found.grad_norm_limit)
        self.counts.update(self.found.kinds)
        policy = self._policy(self.found)
        # A rollback without a checkpoint is a skip; with one, this hook ends.
        self.skips = self.skips + 1 if policy in ("skip", "rollback") else 0
        if policy == "rollback":
            self._roll_back(info, self.found)
        elif policy == "stop":
            self._stop(info, self.found)
        else:
            self._go_on(info, self.found)

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()

    def _policy(self, found: Anomaly) -> str:
        return self.config.spike if found.is_finite else self.config.nonfinite

    def _go_on(self, info: StepInfo, found: Anomaly) -> None:
        """Policies skip and warn; of skips in a row, the first is told on the console."""
        self._write(info, found, info.state.step)
        if self.skips <= 1:
            what = "the step is skipped" if info.result.skipped else "the step is taken"
            say(f"warning: step {info.state.step}: {found}; {what}{self._where()}")
        step, most = info.state.step, self.config.max_in_a_row
        if most and self.skips == most:
            raise ValueError(
                f"steps {step - most + 1} to {step} were skipped, the last since its {found}; no "
                "weight changed; lower optimizer.peak_learning_rate, look at the data, or continue "
                f"from an earlier checkpoint (anomalies.max_in_a_row={most})"
            )

    def _stop(self, info: StepInfo, found: Anomaly) -> None:
        self._write(info, found, info.state.step)
        key = "spike" if found.is_finite else "nonfinite"
        raise ValueError(
            f"step {info.state.step}: {found}; the run stops before it changed a weight "
            f"(anomalies.{key}=stop); with skip or rollback the same command goes on{self._where()}"
        )

    def _roll_back(self, info: StepInfo, found: Anomaly) -> None:
        """To the last good checkpoint, or, where there is none, only past the batch."""
        self.publish(info)
        target = checkpoint.find_last_good(self.run_dir / "checkpoints", warn=say)
        if target is None:
            if self.skips == 1:
                say("there is no checkpoint to go back to")
            self._go_on(info, found)
            return
        step, most = checkpoint.read_state(target).step, self.config.max_in_a_row
        before, is_written = self._write_rollback(info, found, step)
        if not is_written:
            say(f"step {info.state.step}: the disk has no space to note that the run goes back")
            self._go_on(info, found)
            return
        told = f"step {info.state.step}: {found}; back to step {step}, and on behind the batch"
        if (
            most
            and sum(row["step"] == step and row["rolled_back_from"] > 0 for row in before) >= most
        ):
            raise ValueError(
                f"{told}, {most} times already: lower optimizer.peak_learning_rate, or look "
                f"at the data (anomalies.max_in_a_row={most}){self._where()}"
            )
        say(f"warning: {told}{self._where()}")
        raise Rollback

    def _write(self, info: StepInfo, found: Anomaly, step: int) -> None:
        if distributed.is_rank_zero():
            self.log.append([self._row(info, found, step)])
            self._count(info)

    def _write_rollback(
        self, info: StepInfo, found: Anomaly, step: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """In the place of the rows behind `step`: those before it, and whether there was space.

        The run that goes back reads there what it is to pass over.
        """
        before: list[dict[str, Any]] = []
        is_written = True
        if distributed.is_rank_zero():
            behind = [row for row in self.log.rows() if row["step"] > step]
            before = self.log.cut_behind(step)
            row = self._row(info, found, step, rolled_back_from=info.state.step)
            is_written = self.log.append_now(row)
            if is_written:
                self._count(info)
            else:
                self.log.append(behind)
        before, is_written = distributed.broadcast((before, is_written))
        return before, is_written

    def _row(
        self, info: StepInfo, found: Anomaly, step: int, *, rolled_back_from: int = 0
    ) -> dict[str, Any]:
        """With the samples of the batch."""
        seen = info.state.samples_seen
        positions = self.positions(seen - self.global_batch_size, self.global_batch_size)
        return {
            "step": step,
            "rolled_back_from": rolled_back_from,
            "policy": self._policy(found),
            **asdict(found),
            "samples_seen": seen,
            "samples": self.origins(positions),
        }

    def _count(self, info: StepInfo) -> None:
        """For TensorBoard."""
        if self.events is not None:
            counts = {f"anomalies/{kind}": self.counts[kind] for kind in KINDS}
            self.events.add_scalars(counts, info.state.step)
            self.events.flush()

    def _where(self) -> str:
        return f"; its samples: {self.log.path}"


def pass_over(run_dir: Path, state: RunState) -> RunState:
    """The state that a run resumes with, behind the batches that rollbacks to it have left out.

    Every rank calls it.
    """
    rows: list[dict[str, Any]] = []
    if distributed.is_rank_zero():
        rows = StepLog(run_dir / LOG).rows()
    behind = [
        row["samples_seen"]
        for row in distributed.broadcast(rows)
        if row["rolled_back_from"] and row["step"] == state.step
    ]
    seen = max([state.samples_seen, *behind])
    if seen > state.samples_seen:
        say(f"goes on behind {seen:,} samples: step {state.step} was rolled back to")
    return replace(state, samples_seen=seen)


def _is_finite(row: dict[str, Any]) -> bool:
    """Whether a step's numbers are such as a judge takes up."""
    numbers = (row["loss"], row["grad_norm"])
    return all(number is not None and math.isfinite(number) for number in numbers)
