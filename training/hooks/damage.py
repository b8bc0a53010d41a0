"""Tells of damaged data that a run replaces: how many samples on the console and to TensorBoard,
and what is wrong with which of them, of each split, in `damage.jsonl`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.data.replacement import Damage
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.events import EventFile

LOG = "damage.jsonl"


@dataclass(slots=True)
class Told:
    """What rows of a split have told so far."""

    replaced: int = 0
    """Samples."""
    faults: dict[str, str] = field(default_factory=dict)
    """By name."""
    before: int = 0
    """Samples that were told of before this process started."""


class DamageHook(Hook):
    """Counts over all ranks; silent while nothing new is replaced.

    A sample of the data order counts each time, one that is read in file order, as in evaluation,
    once. What loaders have read ahead counts already, so that a resumed run counts some of it
    twice.
    """

    pauses_training = False

    def __init__(
        self,
        run_dir: Path,
        damage: Mapping[str, Sequence[Damage]],
        events: "EventFile | None",
        *,
        every_steps: int,
        device: torch.device,
    ) -> None:
        """For the damage of this rank's data, by split: of all that read it."""
        self.log = StepLog(run_dir / LOG)
        self.damage = damage
        self.events = events
        self.every_n_steps = every_steps
        self.device = device
        self.seen = 0
        self.told = {split: Told() for split in damage}

    def on_start(self, state: RunState) -> None:
        """Take up the count before the checkpoint that the run continues from."""
        rows: list[dict[str, Any]] = []
        if distributed.is_rank_zero():
            rows = self.log.cut_behind(state.step)
        for row in rows:
            told = self.told[row.get("split", "train")]  # an early run tells of training alone
            told.replaced = told.before = row["replaced_samples"]
            told.faults |= row["faults"]

    def on_step(self, info: StepInfo) -> None:
        """Sum up, and tell what is new; every rank calls it."""
        own = {split: reduce(or_, parts, Damage()) for split, parts in self.damage.items()}
        counts = [damage.num_replaced + len(damage.replaced) for damage in own.values()]
        total = int(distributed.sum_over_ranks(torch.tensor(sum(counts), device=self.device)))
        if total == self.seen:
            return
        self.seen = total
        of_ranks = distributed.gather(own)
        if distributed.is_rank_zero():
            for split in own:
                self._tell(info.state.step, split, reduce(or_, (each[split] for each in of_ranks)))

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()

    def _tell(self, step: int, split: str, found: Damage) -> None:
        told = self.told[split]
        # A process that goes on finds in file order what the one before it has told of.
        replaced = max(told.before + found.num_replaced, len(found.replaced))
        new = {name: fault for name, fault in found.faults.items() if name not in told.faults}
        if replaced == told.replaced and not new:
            return
        told.replaced = replaced
        told.faults |= new
        row = {"step": step, "split": split, "replaced_samples": replaced, "faults": new}
        self.log.append([row])
        if self.events is not None:
            group = "data" if split == "train" else f"data_{split}"
            numbers = {"replaced_samples": replaced, "damaged": len(told.faults)}
            self.events.add_scalars({f"{group}/{name}": one for name, one in numbers.items()}, step)
            self.events.flush()
        of = "" if split == "train" else f"of {split} "
        say(
            f"warning: step {step}: {replaced:,} samples {of}so far came in the place of "
            f"{len(told.faults):,} damaged images or chunks, which {self.log.path} names"
        )
