"""Why a peak is what it is, in a sentence, and what would lower it most."""

from typing import Any

from training.memory.machine import GIB
from training.memory.prediction import Prediction

STATES = ("parameters", "second copy", "gradients", "optimizer", "average", "gathered weights")
"""Kinds that grow with the model and not with the batch."""


def explain(prediction: Prediction, config: Any, *, world_size: int) -> str:
    """The largest part of the peak, where it is, and what to do about it."""
    peak = prediction.peak
    kinds = dict(peak.breakdown)
    states = sum(kinds.get(kind, 0) for kind in STATES)
    logits = kinds.get("logits", 0)
    activations = kinds.get("activations", 0)
    whole = f"of {peak.num_bytes / GIB:.1f} GiB"
    if states >= max(logits, activations):
        what = f"weights, gradients and optimizer are {states / GIB:.1f} {whole}"
        advice = _advice_on_states(config, world_size // config.engine.tensor_parallel_size)
    elif logits >= activations:
        what = f"logits and their gradients are {logits / GIB:.1f} {whole}"
        advice = _advice_on_logits(config)
    else:
        what = f"activations are {activations / GIB:.1f} {whole}"
        advice = _advice_on_activations(config)
    return f"The peak is in the {peak.moment}: {what}; {advice}."


def _advice_on_states(config: Any, num_sharing: int) -> str:
    engine = config.engine
    if num_sharing > 1 and engine.zero_stage < 3:
        return f"engine.zero_stage={engine.zero_stage + 1} would share more of them"
    if engine.offload_optimizer == "none" and engine.zero_stage > 0:
        return "engine.offload_optimizer=cpu would bring the optimizer to the host"
    return "more GPUs would share them"


def _advice_on_logits(config: Any) -> str:
    chunk = getattr(config.task.config, "chunk_tokens", 0)
    if chunk > 512:
        return f"chunk the loss, as by task.chunk_tokens={max(512, chunk // 4)}"
    return "a smaller batch.micro_batch_size would lower them"


def _advice_on_activations(config: Any) -> str:
    mode = config.engine.activation_checkpointing
    if mode == "none" and config.engine.tensor_parallel_size == 1:
        return "engine.activation_checkpointing=selective or full would keep fewer"
    if mode in ("none", "every_n", "selective"):
        return "engine.activation_checkpointing=full would keep fewer"
    if config.batch.micro_batch_size > 1:
        return "a smaller batch.micro_batch_size would lower them"
    return "they are those of one sample: a shorter one would lower them"
