"""Tells what was asked of the store that a dataset lies in, and how often again."""

from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from training import distributed
from training.console import say
from training.data.traffic import Traffic
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.events import EventFile

NAMES = [field.name for field in fields(Traffic) if field.compare]


class StoreHook(Hook):
    """Counts over all ranks, of the training split and since this start; a line at the end."""

    pauses_training = False

    def __init__(
        self,
        url: str,
        traffic: Traffic,
        events: "EventFile | None",
        *,
        every_steps: int,
        device: torch.device,
    ) -> None:
        """For the traffic of this rank's data."""
        self.url = url
        self.traffic = traffic
        self.events = events
        self.every_n_steps = every_steps
        self.device = device

    def on_step(self, info: StepInfo) -> None:
        """Sum up; every rank calls it."""
        own = torch.tensor([getattr(self.traffic, name) for name in NAMES], device=self.device)
        total = Traffic(**dict(zip(NAMES, distributed.sum_over_ranks(own).tolist(), strict=True)))
        if self.events is not None:
            scalars = {
                "store_chunks": total.num_chunks,
                "store_gib": total.num_bytes / 2**30,
                "store_retries": total.num_retries,
                "cache_hits": total.num_cache_hits,
                "cache_faults": total.num_cache_faults,
            }
            named = {f"data/{name}": float(value) for name, value in scalars.items()}
            self.events.add_scalars(named, info.state.step)
            self.events.flush()
        if info.is_last or info.is_stopped:
            say(
                f"{self.url}: {total.num_chunks:,} chunks ({total.num_bytes / 2**20:,.1f} MiB) "
                f"read, {total.num_retries:,} reads made again, {total.num_cache_hits:,} chunks "
                "from the cache"
            )
