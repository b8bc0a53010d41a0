"""The peak of forward and backward by fake tensors: the real model and task, without memory.

Seconds, no device, no dataset. Kernels are those of the CPU, whose fake tensors need no CUDA; see
`training/memory/operations.py` for the few that differ on a GPU.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from training.activation_checkpointing import apply_activation_checkpointing
from training.config import TrainingConfig
from training.data.tokens import Sequences
from training.memory.counter import TensorCounter
from training.objective import MicroBatch, Objective

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def trace_forward_backward(config: TrainingConfig) -> int:
    """Peak bytes of weights, batch, activations and gradients of the first micro batch."""
    autocast = config.engine.zero_stage == 0 and config.engine.precision != "fp32"
    dtype, engine = DTYPES[config.engine.precision], config.engine
    collated = zero_batch(config)
    with _quiet(), FakeTensorMode(), TensorCounter() as counter:
        before = counter.alive  # of others in this process
        with _default_dtype(torch.float32 if autocast else dtype):
            model = config.model.module.Model(config.model.config)
        apply_activation_checkpointing(
            model.blocks,
            engine.activation_checkpointing,
            every_n=engine.activation_checkpointing_every_n,
        )
        objective = Objective(model, build_bare_task(config))
        batch = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in collated.items()}
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            loss, _ = objective(batch)
        loss.backward()
    return int(counter.peak - before)


def build_bare_task(config: TrainingConfig) -> Any:
    """The task without a dataset."""
    build, model = config.task.module.Task, config.model.config
    if config.task.module.KIND == "text":
        # Of one token, that of `zero_batch`: sentinels stand behind a tokenizer's tokens.
        return build(config.task.config, vocab_size=1, end_of_document=0)
    classes = tuple(str(number) for number in range(getattr(model, "num_classes", 0)))
    return build(config.task.config, config.augment, classes=classes, model=model)  # type: ignore[attr-defined]


def zero_batch(config: Any) -> MicroBatch:
    """A micro batch of pixels or tokens 0, as the task collates it."""
    size, model = config.batch.micro_batch_size, config.model.config
    if config.task.module.KIND == "text":
        batch: MicroBatch = build_bare_task(config).collate(_zero_sequences(size, config))
        return batch
    side = model.image_size
    pixels = {
        "pixels": torch.zeros(size, side, side, 3, dtype=torch.uint8),
        "weights": torch.ones(size),
        "classes": torch.zeros(size, dtype=torch.int64),
        "noise": torch.zeros(size, math.prod(model.grid)),
    }
    if config.augment.mixes:
        pixels |= {"share": torch.zeros(size), "mix_box": torch.zeros(size, 4)}
    return pixels


def _zero_sequences(num_rows: int, config: Any) -> Sequences:
    positions = np.arange(num_rows)
    return Sequences(
        np.zeros((num_rows, config.data.sequence_length + 1), np.int64),
        [np.zeros(0, np.int64)] * num_rows,
        positions,
        np.ones(num_rows, np.bool_),
        positions.astype(np.uint64),
    )


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracker warns of modules that have ended before their backward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
