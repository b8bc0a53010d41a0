"""The fastest plans that fit: candidates in the order of their estimated speed, until enough do."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from training.config import TrainingConfig
from training.deepspeed_config import Config as EngineConfig
from training.memory.cost import Cost, estimate
from training.memory.forward_backward import build_model
from training.memory.machine import GIB, Machine
from training.memory.prediction import Prediction, predict

CHUNKS = (512, 2048, 8192)
"""Tokens whose logits exist at once, beside what the config says."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A config that trains the same, batch by batch, with its cost and its memory."""

    config: TrainingConfig
    accumulation: int
    cost: Cost
    prediction: Prediction
    useful_flops_share: float
    """Of the device's peak, by the estimate: MFU."""


def search(config: TrainingConfig, machine: Machine, *, num_plans: int = 8) -> list[Plan]:
    """The fastest plans that fit the machine, fastest first; empty if none does.

    Raises:
        ValueError: no micro batch divides the global batch over the ranks.
    """
    found: dict[Any, Plan] = {}
    largest: dict[tuple[Any, ...], int] = {}
    for cost, accumulation, candidate in _by_speed(config, machine):
        if candidate.engine in found:  # with another micro batch or chunk, and faster
            continue
        others = _without_size(candidate)
        if others not in largest:
            largest[others] = _largest_size(candidate, machine)
        if candidate.batch.micro_batch_size <= largest[others]:
            prediction = predict(candidate, machine.ranks)
            found[candidate.engine] = _plan(candidate, machine, accumulation, cost, prediction)
        if len(found) == num_plans:
            break
    return list(found.values())


def smallest(config: TrainingConfig, machine: Machine) -> Plan:
    """Of all candidates with a micro batch of one sample, the one that needs least of a device.

    Raises:
        ValueError: no micro batch divides the global batch over the ranks.
    """
    plans = [
        _plan(candidate, machine, accumulation, cost, predict(candidate, machine.ranks))
        for cost, accumulation, candidate in _by_speed(config, machine)
        if candidate.batch.micro_batch_size == 1
        and candidate.engine.activation_checkpointing in ("full", "offload")
        and getattr(candidate.task.config, "chunk_tokens", 0) <= CHUNKS[0]
    ]
    return min(plans, key=lambda plan: plan.prediction.peak.num_bytes)


def _largest_size(candidate: TrainingConfig, machine: Machine) -> int:
    """The largest micro batch that fits, by bisection; 0 if none does."""
    of_rank = candidate.batch.global_batch_size // machine.world_size
    sizes = _divisors(of_rank)
    tokens = getattr(candidate.data, "sequence_length", 1)
    whole = _without_size(candidate)[1] == "whole"

    def is_too_large(size: int) -> bool:
        batch = replace(candidate.batch, micro_batch_size=size)
        task = candidate.task
        if whole:
            task = replace(task, config=replace(task.config, chunk_tokens=size * tokens))
        trial = replace(candidate, batch=batch, task=task)
        return not fits(predict(trial, machine.ranks), machine)

    below = bisect_left(sizes, x=True, key=is_too_large)
    return sizes[below - 1] if below else 0


def fits(prediction: Prediction, machine: Machine) -> bool:
    """Into the device, and what is offloaded into its share of the host."""
    on_host = prediction.host_bytes <= machine.host_memory_gib * GIB
    return prediction.peak.num_bytes <= machine.usable_bytes and on_host


def _plan(
    config: TrainingConfig,
    machine: Machine,
    accumulation: int,
    cost: Cost,
    prediction: Prediction,
) -> Plan:
    share = cost.useful_flops / cost.seconds / machine.peak_flops
    return Plan(config, accumulation, cost, prediction, share)


def _by_speed(config: TrainingConfig, machine: Machine) -> list[tuple[Cost, int, TrainingConfig]]:
    model = build_model(config)
    of_rank = config.batch.global_batch_size // machine.world_size
    if config.batch.global_batch_size % machine.world_size:
        raise ValueError(
            f"batch.global_batch_size={config.batch.global_batch_size} cannot be shared by "
            f"{machine.world_size} ranks; use a multiple of {machine.world_size}"
        )
    candidates = []
    for candidate in _candidates(config, machine, of_rank):
        accumulation = of_rank // candidate.batch.micro_batch_size
        cost = estimate(candidate, machine, model, accumulation=accumulation)
        candidates.append((cost, accumulation, candidate))
    return sorted(candidates, key=lambda each: each[0].seconds)


def _candidates(config: TrainingConfig, machine: Machine, of_rank: int) -> Iterator[TrainingConfig]:
    """All that trains the same: ZeRO stage, micro batch, checkpointing, offload, chunks."""
    sizes = _divisors(of_rank)
    modes = ("none", "every_n", "selective", "full", "offload")
    # Stage 1 cannot add bf16 states' gradients up, which most micro batches ask for.
    stages = (1, 2, 3) if config.engine.optimizer_precision == "fp32" else (2, 3)
    for stage, mode, offload, size in itertools.product(
        stages, modes, _offloads(config.engine), sizes
    ):
        changes: dict[str, Any] = {"zero_stage": stage, "activation_checkpointing": mode, **offload}
        if mode != "every_n":  # where its n has no effect, another than the default is refused
            changes["activation_checkpointing_every_n"] = (
                EngineConfig.activation_checkpointing_every_n
            )
        if config.engine.compile in ("blocks", "model"):  # which stage 3 and stage 1 cannot
            changes["compile"] = "none" if stage == 3 else "blocks"
        try:
            engine = replace(config.engine, **changes)
        except ValueError:  # does not go together
            continue
        batch = replace(config.batch, micro_batch_size=size)
        for task in _tasks(config, size):
            yield replace(config, engine=engine, batch=batch, task=task)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _offloads(engine: Any) -> list[dict[str, str]]:
    """Nothing, the optimizer, or weights too: to files where the config has a folder for them."""
    nothing = {"offload_optimizer": "none", "offload_parameters": "none", "nvme_dir": ""}
    optimizer = {**nothing, "offload_optimizer": "cpu"}
    choices = [nothing, optimizer, {**optimizer, "offload_parameters": "cpu"}]
    if engine.nvme_dir:
        files = {"offload_optimizer": "nvme", "nvme_dir": engine.nvme_dir}
        choices.append({**files, "offload_parameters": "cpu"})
    return choices


def _tasks(config: TrainingConfig, micro_batch_size: int) -> list[Any]:
    """The task, with chunks of the loss that make a difference to a micro batch of this size."""
    task = config.task
    own = getattr(task.config, "chunk_tokens", None)
    if own is None:
        return [task]
    tokens = micro_batch_size * config.data.sequence_length  # type: ignore[attr-defined]
    sizes = {min(size, tokens) for size in (own, *CHUNKS)} | {tokens}
    return [replace(task, config=replace(task.config, chunk_tokens=max(size, 1))) for size in sizes]


def _without_size(config: Any) -> tuple[Any, ...]:
    """What tells candidates apart that differ in the micro batch alone."""
    tokens = config.batch.micro_batch_size * getattr(config.data, "sequence_length", 1)
    chunk = getattr(config.task.config, "chunk_tokens", None)
    return (config.engine, "whole" if chunk == tokens else chunk)
