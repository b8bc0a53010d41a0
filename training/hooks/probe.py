"""The probe: how well frozen features of training images tell the classes of validation images.

It shows what a model without a classifier, as a masked autoencoder, has learned.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training import distributed
from training.checkpoint import RunState
from training.console import say
from training.objective import MicroBatch
from training.probe import linear_classifier, nearest_neighbours
from training.step_log import StepLog
from training.trainer import Hook, StepInfo

if TYPE_CHECKING:
    from training.data.loader import EvaluationBatches
    from training.engine import Engine
    from training.events import EventFile


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `probe`."""

    every_steps: int = 0
    """Probe before the first step, after so many steps, and at the end of the run; 0 never."""
    max_samples: int = 10_000
    """Images of each split, the first of them; 0 is all."""
    num_neighbours: int = 20
    """Training images that vote on a validation image."""
    temperature: float = 0.07
    """Of the vote: exp(cosine / temperature)."""
    weight_decay: float = 1e-3
    """Of the linear probe."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for name, least in (("every_steps", 0), ("max_samples", 0), ("num_neighbours", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, found {getattr(self, name)}")
        for name in ("temperature", "weight_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")


class ProbeHook(Hook):
    """Top-1 of nearest neighbours and of a linear probe; the same on any number of ranks."""

    def __init__(
        self,
        engine: "Engine",
        train: Sequence[MicroBatch],
        validation: "EvaluationBatches",
        events: "EventFile | None",
        config: Config,
        *,
        embed: Callable[[MicroBatch], Tensor],
        run_dir: Path,
        averaged: bool = False,
    ) -> None:
        """Batches are this rank's, with `classes` and `weights` (B); `embed` gives vectors (B, D).

        Rows of weight 0 or without a class, which is -1, are left out. Where `averaged`, the model
        has the average of its weights, and the log another name.
        """
        self.engine = engine
        self.train = train
        self.validation = validation
        self.events = events
        self.config = config
        self.every_n_steps = config.every_steps
        self.embed = embed
        self.averaged = averaged
        self.group = "probe_ema" if averaged else "probe"
        self.log = StepLog(run_dir / f"{self.group}.jsonl")

    def on_start(self, state: RunState) -> None:
        """Drop the rows behind the checkpoint that the run continues from, or probe a new model.

        The average of a new model is its weights, which the other hook probes.
        """
        if distributed.is_rank_zero():
            self.log.cut_behind(state.step)
        if state.step == 0 and not self.averaged:
            self._probe(0)

    def on_step(self, info: StepInfo) -> None:
        """Probe behind a step."""
        self._probe(info.state.step)

    def on_end(self) -> None:
        """Try again to write what a full disk has refused."""
        self.log.close()

    def _probe(self, step: int) -> None:
        """Features on all ranks, the rest on the first."""
        started = time.perf_counter()
        with self.engine.averaged() if self.averaged else contextlib.nullcontext():
            known, classes = self._features(self.train)
            features, expected = self._features(self.validation)
        if not distributed.is_rank_zero():
            return
        if not (len(known) and len(features) and torch.cat((known, features)).isfinite().all()):
            say(f"no probe at step {step}: no image has a class, or features are not finite")
            return
        shares = self._shares_right(known, classes, features, expected)
        self.log.append([{"step": step, **shares, "num_samples": len(features)}])
        if self.events is not None:
            self.events.add_scalars({f"{self.group}/{name}": shares[name] for name in shares}, step)
            self.events.flush()
        say(
            f"probe {'of averaged weights ' if self.averaged else ''}at step {step}: nearest "
            f"neighbours {shares['neighbours_top1']:.2%}, linear {shares['linear_top1']:.2%} of "
            f"{len(features):,} images, by {len(known):,} in {time.perf_counter() - started:.1f} s"
        )

    def _shares_right(
        self, known: Tensor, classes: Tensor, features: Tensor, expected: Tensor
    ) -> dict[str, float]:
        near = nearest_neighbours(
            features,
            known,
            classes,
            num_neighbours=self.config.num_neighbours,
            temperature=self.config.temperature,
        )
        linear = linear_classifier(features, known, classes, weight_decay=self.config.weight_decay)
        return {
            "neighbours_top1": (near == expected).double().mean().item(),
            "linear_top1": (linear == expected).double().mean().item(),
        }

    @torch.no_grad()
    def _features(self, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) and classes (N) of all ranks, in the order of the split."""
        self.engine.deepspeed.eval()
        parts = []
        for batch in batches:
            on_device = self.engine.to_device(batch)
            parts.append((self.embed(on_device).float().cpu(), batch["classes"], batch["weights"]))
        self.engine.deepspeed.train()
        rounds = zip(*distributed.gather(parts), strict=True)
        rows = [part for of_ranks in rounds for part in of_ranks]
        vectors, classes, weights = (torch.cat(column) for column in zip(*rows, strict=True))
        counts = (weights > 0) & (classes >= 0)
        return vectors[counts].to(self.engine.device), classes[counts].to(self.engine.device)
