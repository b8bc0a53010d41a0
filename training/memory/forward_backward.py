"""The forward and backward pass of one micro batch, on a tape: what model and task need."""

import importlib
from collections.abc import Callable
from typing import Any

from configs.plugins import plugin_names
from training.config import TrainingConfig
from training.deepspeed_config import Config as EngineConfig
from training.memory.ledger import Buffer, Ledger, Peak
from training.memory.operations import FP32
from training.memory.tape import Tape, Weight

WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of a number."""


def build_model(config: TrainingConfig, *, weight_ranks: int = 1) -> Any:
    """The model of a config on a tape: `weights()`, and what its task calls; where ranks share
    weights, that of one of them.

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
    model = importlib.import_module(f"training.memory.models.{config.model.name}").Model
    share = {"weight_ranks": weight_ranks} if weight_ranks > 1 else {}  # of the decoder alone
    return model(config.model.config, **share)


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
        compiled=engine.compile in ("blocks", "model"),
        on_gradient=on_gradient,
    )
    ledger.go_to("forward", "start of a micro batch")
    batch = ledger.book("batch", task.batch_bytes(config))
    loss = task.loss(tape, model, config, keeping=keeping_rule(engine))
    tape.end_forward()
    tape.backward(loss)
    del batch
    return tape


def keeping_rule(engine: EngineConfig) -> Callable[[int], str]:
    """What is kept of each block, by its number."""
    mode, every_n = engine.activation_checkpointing, engine.activation_checkpointing_every_n
    if mode != "every_n":
        return lambda number: mode
    return lambda number: "none" if (number + 1) % every_n else "full"


def predict_forward_backward(config: TrainingConfig, *, device: str) -> Peak:
    """Of the first micro batch, with weights and gradients and without an engine: what a trace of
    the model alone shows.
    """
    ledger, model = Ledger(), build_model(config)
    width = FP32 if config.engine.zero_stage == 0 else WIDTHS[config.engine.precision]
    weights = ledger.book("parameters", width * sum(weight.numel for weight in model.weights()))
    run_forward_backward(ledger, model, config, device=device)
    del weights
    return ledger.peak
