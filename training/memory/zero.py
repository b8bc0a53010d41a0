"""What DeepSpeed 0.19 holds on a rank under our settings, and what passes through it.

Read from its source, and compared with its allocations in `tests/training/memory/test_engine.py`:
`runtime/bf16_optimizer.py` (stage 1 of bf16), `runtime/zero/stage_1_and_2.py` and `stage3.py`.
N are the parameters, d the ranks that share them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.deepspeed_config import Config, build_deepspeed_config
from training.memory.forward_backward import WIDTHS
from training.memory.gathering import most_gathered
from training.memory.ledger import Buffer, Ledger
from training.memory.operations import FP32
from training.memory.tape import GRADIENTS, Weight

CUBLAS_WORKSPACE = 32 * 2**20
"""Bytes that torch takes from its allocator for cuBLAS on Hopper."""

MOST_JOINED = 500_000_000
"""Elements that are copied together where no bucket is set: MEMORY_OPT_ALLREDUCE_SIZE of engine.py.
"""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where a run is to happen."""

    world_size: int
    device: str = "cuda"


class Zero:
    """The engine's part of a rank's memory, played along a step in a ledger."""

    def __init__(
        self,
        ledger: Ledger,
        config: Config,
        weights: Sequence[Weight],
        ranks: Ranks,
        *,
        gradient_accumulation_steps: int,
        averaged: bool,
    ) -> None:
        self.ledger = ledger
        self.config = config
        self.stage = config.zero_stage
        self.ranks = ranks
        self.width = FP32 if self.stage == 0 else WIDTHS[config.precision]
        self.state_width = WIDTHS[config.optimizer_precision]
        self.sum_width = FP32 if gradient_accumulation_steps > 1 else self.state_width
        """Of gradients that are added up, as `training/deepspeed_config.py` sets it."""
        self.sent_width = FP32 if config.reduce_in_fp32 else self.width
        """Of gradients between ranks."""
        self.weights = weights
        self.num_weights = sum(weight.numel for weight in weights)
        self.part = math.ceil(self.num_weights / (ranks.world_size if self.stage else 1))
        self.largest = max(weight.numel for weight in weights)
        self.settings: dict[str, Any] = build_deepspeed_config(
            config,
            micro_batch_size=1,
            gradient_accumulation_steps=gradient_accumulation_steps,
            num_parameters=self.num_weights,
            overlap=ranks.device != "cpu",
        )["zero_optimization"]
        self.gradients: dict[int, Buffer] = {}
        """Of whole weights."""
        self.passing: list[Buffer] = []
        """What is in the middle of a backward pass."""
        self.partition: Buffer | None = None
        """This rank's part of the gradients, in fp32, where it is not held always."""
        self.filled = 0
        """Elements in the bucket."""
        self.is_last = True
        self.host_bytes = 0
        self.held = self._hold(averaged=averaged)

    @property
    def has_bf16_optimizer(self) -> bool:
        """DeepSpeed has another optimizer for bf16 at stage 1, which cannot offload."""
        is_bf16 = self.config.precision == "bf16" and self.config.optimizer_precision == "fp32"
        return self.stage == 1 and is_bf16 and not self.offloads_optimizer

    @property
    def offloads_optimizer(self) -> bool:
        """Masters and moments are in the memory of the host, or behind it."""
        return self.config.offload_optimizer != "none"

    @property
    def bucket(self) -> int:
        """Elements that are reduced together."""
        return int(self.settings["reduce_bucket_size"])

    def _hold(self, *, averaged: bool) -> list[Buffer]:
        """From the second step on, always."""
        book, num, part = self.ledger.book, self.num_weights, self.part
        masters = part if self.stage else 0  # at stage 0 the weights are fp32 themselves
        states = self.state_width * (masters + 2 * part)
        weights = self.width * (part if self.stage == 3 else num)
        held = [book("average", FP32 * part * averaged)]
        if self.config.hpz_partition_size > 1:
            held.append(book("second copy", self._second_copy()))
        if self.ranks.device != "cpu":
            held.append(book("workspace", CUBLAS_WORKSPACE))
        self._place(held, "parameters", weights, where=self.config.offload_parameters)
        self._place(held, "optimizer", states, where=self.config.offload_optimizer)
        if self.has_bf16_optimizer:
            held.append(book(GRADIENTS, FP32 * num))
        if self.stage == 3:
            gradients = "cpu" if self.offloads_optimizer else "none"
            self._place(held, GRADIENTS, self.sum_width * part, where=gradients)
            held.append(book("buckets", self.sent_width * self.bucket))
        elif self.offloads_optimizer:  # fp32 gradients and a copy of the weights on their way
            self.host_bytes += (FP32 + self.width) * part
            held.append(book("buckets", self.width * self.largest))
        return held

    def _second_copy(self) -> int:
        """Of hpZ, from the first forward pass on, as partition_parameters.py makes
        `ds_secondary_tensor`: all weights but the small ones, which are whole always.
        """
        threshold = int(self.settings["stage3_param_persistence_threshold"])
        copied = sum(weight.numel for weight in self.weights if weight.numel > threshold)
        return self.width * copied // self.config.hpz_partition_size

    def _place(self, held: list[Buffer], kind: str, num_bytes: int, *, where: str) -> None:
        """On the device, in the memory of the host, or in files."""
        if where == "cpu":
            self.host_bytes += num_bytes
        if where == "none":
            held.append(self.ledger.book(kind, num_bytes))

    def begin(self, *, is_last: bool) -> None:
        """Before the forward pass of a micro batch, the last of a step or another."""
        self.is_last = is_last
        if self.stage == 3:
            gathered = most_gathered(
                [weight.numel for weight in self.weights], self.settings, self.config
            )
            alone = self.ranks.world_size == 1  # the weights are whole already
            self.passing.append(
                self.ledger.book("gathered weights", 0 if alone else self.width * gathered)
            )
        self.filled = 0

    def take(self, weight: Weight, gradient: Buffer) -> None:
        """A gradient is whole."""
        if self.stage in (1, 2) and not self.has_bf16_optimizer and not self.passing:
            self._make_buckets()
        if self._casts_each:
            gradient = self.ledger.book(GRADIENTS, FP32 * weight.numel)
        if self._keeps_gradients:
            self.gradients.setdefault(id(weight), gradient)  # a later one is added in place
            return
        self.gradients.pop(id(weight), None)
        if self.filled + weight.numel > self.bucket:
            self._reduce(self.filled)
            self.filled = 0
        if weight.numel > self.bucket:  # as it is, without a bucket
            self._reduce(weight.numel)
        else:
            self.filled += weight.numel

    def _make_buckets(self) -> None:
        """By the first gradient of a backward pass."""
        width = FP32 if self._casts_each else self.width
        number = 2 if self.settings["overlap_comm"] else 1
        self.passing.append(self.ledger.book("buckets", number * width * self.bucket))

    @property
    def _keeps_gradients(self) -> bool:
        """Until the end of the last backward pass, of all weights."""
        if self.stage == 0 or self.has_bf16_optimizer:
            return True
        return self.stage == 1 and not (self.is_last and self.settings["overlap_comm"])

    @property
    def _casts_each(self) -> bool:
        """Stage 1 makes each gradient fp32 as it comes."""
        return self.stage == 1 and self.width < self.sum_width and not self.has_bf16_optimizer

    @property
    def _step_width(self) -> int:
        """Of a copy of gradients that are wider than what they change."""
        return self.state_width if self.state_width < self.sum_width else 0

    def _reduce(self, numel: int) -> None:
        """Sum a bucket over the ranks: a flat copy, and one in the precision of communication."""
        moment, self.ledger.moment = self.ledger.moment, f"reduction at {self.ledger.moment}"
        if self.stage == 3:  # gloo, which has no reduce-scatter, copies it once more
            copies = 2 if self.ranks.device == "cpu" else 1
            sums = self.sum_width / self.ranks.world_size if self.sum_width > self.sent_width else 0
            width = max(copies * self.sent_width, self.sent_width + sums)
            self.ledger.visit("buckets", width * numel)
        else:
            width = FP32 if self._casts_each else self.width
            wide = self.sent_width if self.sent_width > width else 0
            widens = self.sum_width == FP32 and (self.stage == 2 or self._casts_each)
            joins = widens or self.ranks.world_size > 1
            if self.sum_width == FP32 and self.partition is None:
                self.partition = self.ledger.book(GRADIENTS, FP32 * self.part)
            self.ledger.visit("buckets", (width * joins + wide) * numel)
            if self.partition is None:
                self.partition = self.ledger.book(GRADIENTS, self.sum_width * self.part)
        self.ledger.moment = moment

    def end_backward(self) -> None:
        """Behind the backward pass of a micro batch."""
        self.ledger.go_to("backward", "end of the backward pass")
        joined = min(self.num_weights, MOST_JOINED) if self.is_last else 0
        if self.has_bf16_optimizer:  # more than one group of parameters is copied into one
            copied = joined if joined == self.num_weights else 0
            self.ledger.visit("buckets", FP32 * max(self.largest, copied))
        elif self.stage == 0:
            self.ledger.visit("buckets", FP32 * joined * (self.ranks.world_size > 1))
        elif self.is_last and self._keeps_gradients:
            if self.num_weights <= self.bucket:  # all gradients have moved into it
                self.gradients.clear()
            self._reduce(min(self.num_weights, self.bucket))
            self.gradients.clear()
        elif self.filled:
            self._reduce(self.filled)
        # In fp32 stage 1 keeps its buckets for the next micro batch.
        if self.is_last or self._casts_each or self.stage != 1:
            self.passing.clear()

    def step(self) -> None:
        """The optimizer: what it needs beside what is held."""
        self.ledger.go_to("optimizer step", "optimizer step")
        if self.offloads_optimizer:
            self.ledger.look()
        elif self.stage == 3:
            group = min(self.part, 10**9)  # stage3.py: sub_group_size
            self.ledger.visit(GRADIENTS, (self.sum_width + self._step_width) * group)
        elif self.stage and self.config.precision == "fp32":
            self.ledger.visit(GRADIENTS, FP32 * self.part)
        elif self.stage and self.state_width < FP32:
            self.ledger.visit(GRADIENTS, self.state_width * self.part)
        self.gradients.clear()
        self.partition = None
