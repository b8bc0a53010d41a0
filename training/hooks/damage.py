"""Tells of damaged data that a run replaces: how many samples on the console and to TensorBoard,
and what is wrong with which of them in `damage.jsonl`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.data.replacement import Damage
    from training.events import EventFile

LOG = "damage.jsonl"


class DamageHook(Hook):
    """Counts over all ranks; silent while nothing new is replaced.

    What loaders have read ahead counts already, so that a resumed run counts some of it twice.
    """

    pauses_training = False

    def __init__(
        self,
        run_dir: Path,
        damage: "Damage",
        events: "EventFile | None",
        *,
        every_steps: int,
        device: torch.device,
    ) -> None:
        """For the damage of this rank's data."""
        self.log = StepLog(run_dir / LOG)
        self.damage = damage
        self.events = events
        self.every_n_steps = every_steps
        self.device = device
        self.before, self.told = 0, 0
        self.faults: dict[str, str] = {}

    def on_start(self, state: RunState) -> None:
        """Take up the count before the checkpoint that the run continues from."""
        rows: list[dict[str, Any]] = []
        if distributed.is_rank_zero():
            rows = self.log.cut_behind(state.step)
        for row in rows:
            self.before = row["replaced_samples"]
            self.faults |= row["faults"]

    def on_step(self, info: StepInfo) -> None:
        """Sum up, and tell what is new; every rank calls it."""
        own = torch.tensor(self.damage.num_replaced, device=self.device)
        total = int(distributed.sum_over_ranks(own))
        if total == self.told:
            return
        self.told = total
        found: dict[str, str] = {}
        for faults in distributed.gather(dict(self.damage.faults)):
            found |= faults
        if distributed.is_rank_zero():
            self._tell(info.state.step, self.before + total, found)

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()

    def _tell(self, step: int, replaced: int, found: dict[str, str]) -> None:
        new = {name: fault for name, fault in found.items() if name not in self.faults}
        self.faults |= new
        self.log.append([{"step": step, "replaced_samples": replaced, "faults": new}])
        if self.events is not None:
            numbers = {"replaced_samples": replaced, "damaged": len(self.faults)}
            self.events.add_scalars({f"data/{name}": one for name, one in numbers.items()}, step)
            self.events.flush()
        say(
            f"warning: step {step}: {replaced:,} samples so far came in the place of "
            f"{len(self.faults):,} damaged images or chunks, which {self.log.path} names"
        )
