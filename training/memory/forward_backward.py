"""The forward and backward pass of one micro batch, on a tape: what model and task need."""

import importlib
from collections.abc import Callable
from typing import Any

from configs.plugins import plugin_names
from training.config import TrainingConfig
from training.memory.ledger import Buffer, Ledger
from training.memory.tape import Tape, Weight

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""


def build_model(config: TrainingConfig) -> Any:
    """The model of a config on a tape: `weights()`, and what its task calls.

    Raises:
        ValueError: there is no formula for this model or task.
    """
    for what, plugin in (("models", config.model), ("tasks", config.task)):
        known = plugin_names(f"training.memory.{what}")
        if plugin.name not in known:
            raise ValueError(
                f"there is no formula of the memory of {plugin.name}, only of {', '.join(known)}; "
                "use --trace, which needs none"
            )
    return importlib.import_module(f"training.memory.models.{config.model.name}").Model(
        config.model.config
    )


def run_forward_backward(
    ledger: Ledger,
    model: Any,
    config: TrainingConfig,
    *,
    device: str,
    on_gradient: Callable[[Weight, Buffer], None] | None = None,
) -> Tape:
    """Book one micro batch's pass in a ledger; the tape holds what stays behind it."""
    task = importlib.import_module(f"training.memory.tasks.{config.task.name}")
    engine = config.engine
    tape = Tape(
        ledger,
        width=WIDTHS[engine.precision],
        autocast=engine.zero_stage == 0 and engine.precision != "fp32",
        device=device,
        on_gradient=on_gradient,
    )
    ledger.moment = "start of a micro batch"
    batch = ledger.book("batch", task.batch_bytes(config))
    loss = task.loss(tape, model, config, is_checkpointed=checkpoint_rule(engine))
    tape.end_forward()
    tape.backward(loss)
    del batch
    return tape


def checkpoint_rule(engine: Any) -> Callable[[int], bool]:
    """Which blocks are computed again in the backward pass."""
    mode = engine.activation_checkpointing
    return lambda number: mode == "full"
