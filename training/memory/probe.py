"""Three real optimizer steps on the device that is there, on a batch of zeros: the peak they take.

Of a GPU it is what its allocator says. Of a CPU, which keeps no such statistic, it is what the
tensors of all operations come to; what operations use inside is not in it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from training import distributed
from training.activation_checkpointing import apply_activation_checkpointing
from training.batch_size import accumulation_steps
from training.compilation import compile_objective
from training.config import TrainingConfig
from training.engine import Engine, construction
from training.memory.counter import TensorCounter
from training.memory.trace import build_bare_task, zero_batch
from training.objective import Objective
from training.optimizer import build_optimizer
from training.sequence_parallel import share_batch, share_sequences

NUM_STEPS = 3
"""The first makes the optimizer's states; the last is like all that follow."""

NUM_COUNTED = 3
"""Last steps of several ranks on a CPU, of which the lowest peak counts. A thread of gloo lets its
bucket go a moment after it has said that the sum is there: on a busy machine one step in 40 had
one bucket more, 9 % of a small model.
"""


def shorten(config: TrainingConfig) -> TrainingConfig:
    """The config with two micro batches a step at most: more take time and no memory.

    And with a loss scale of fp16 at which no step is skipped: without one there are no states of
    the optimizer.
    """
    of_pass = config.batch.micro_batch_size * _num_shares(config)
    global_batch_size = of_pass * min(_accumulation(config), 2)
    engine = config.engine
    if engine.precision == "fp16":
        engine = replace(engine, initial_loss_scale_power=0)
    batch = replace(config.batch, global_batch_size=global_batch_size)
    return replace(config, batch=batch, engine=engine)


def measure_peak(config: TrainingConfig) -> tuple[int, str]:
    """Peak bytes of this rank in the last of the steps, and its device; every rank calls it.

    Raises:
        ValueError: the batch does not fit the ranks, or the device cannot do what the config says.
    """
    before = TensorCounter().alive  # of others in this process
    engine, batches = build(config)
    for _ in range(NUM_STEPS - 1):
        engine.train_step(batches, learning_rate=1e-6)
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        engine.train_step(batches, learning_rate=1e-6)
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated()), "cuda"
    peaks = []
    for _ in range(NUM_COUNTED if distributed.world_size() > 1 else 1):
        with TensorCounter() as counter:
            engine.train_step(batches, learning_rate=1e-6)
        peaks.append(counter.peak)
    return min(peaks) - before, engine.device.type


def build(config: TrainingConfig) -> tuple[Engine, list[dict[str, Any]]]:
    """The engine of a config without a dataset, and micro batches of zeros for one step."""
    accumulation = _accumulation(config)
    settings = config.engine
    with construction(settings):
        model = config.model.module.Model(config.model.config)
    if settings.sequence_parallel_size > 1:
        share_sequences(model, settings.sequence_parallel_size)
    apply_activation_checkpointing(
        model.blocks,
        settings.activation_checkpointing,
        every_n=settings.activation_checkpointing_every_n,
    )
    task = build_bare_task(config)
    objective = Objective(model, task)
    compile_objective(objective, settings.compile)
    engine = Engine(
        objective,
        build_optimizer(model, config.optimizer),
        settings,
        micro_batch_size=config.batch.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        ema_decay=config.ema.decay,
    )
    own_batch: Callable[[Any], dict[str, Any]] = zero_batch
    if settings.sequence_parallel_size > 1:
        own_batch = share_batch(zero_batch, task.share, settings.sequence_parallel_size)
    return engine, [own_batch(config) for _ in range(accumulation)]


def _accumulation(config: TrainingConfig) -> int:
    return accumulation_steps(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        world_size=_num_shares(config),
    )


def _num_shares(config: TrainingConfig) -> int:
    """Micro batches that all ranks compute at once."""
    return distributed.world_size() // config.engine.ranks_per_sample
