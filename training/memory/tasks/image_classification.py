"""Image classification on a tape."""

from collections.abc import Callable
from typing import Any

from training.layers.patches import CHANNELS
from training.memory.operations import FP32, cast
from training.memory.tape import LOGITS, Tape, Value
from training.memory.tasks.causal_lm import cross_entropy


def batch_bytes(config: Any) -> int:
    """8-bit pixels, and for each image its class, weight and, where they mix, share and box."""
    of_image: int = 12 + 20 * config.augment.mixes
    size: int = config.batch.micro_batch_size
    return num_pixels(config) + of_image * size


def loss(tape: Tape, model: Any, config: Any, *, keeping: Callable[[int], str]) -> Value:
    """The loss of one micro batch of a training config."""
    pixels = normalised_pixels(tape, config)
    if config.augment.mixes:  # the two parts and their neighbours, then the sum
        tape.ledger.visit(tape.kind, 3 * FP32 * pixels.numel)
        pixels = Value(tape.book(FP32 * pixels.numel), pixels.numel, FP32, None)
    num_images = config.batch.micro_batch_size
    logits = model.logits(tape, pixels, num_images=num_images, keeping=keeping)
    del pixels
    tape.enter("loss", kind=LOGITS)
    return cross_entropy(tape, cast(tape, logits, FP32))


def normalised_pixels(tape: Tape, config: Any) -> Value:
    """Of a micro batch, in fp32; they are scaled, then shifted."""
    numel = num_pixels(config)
    tape.enter("pixels")
    tape.ledger.visit(tape.kind, 2 * FP32 * numel)
    return Value(tape.book(FP32 * numel), numel, FP32, None)


def num_pixels(config: Any) -> int:
    """Numbers of a micro batch."""
    side: int = config.model.config.image_size
    size: int = config.batch.micro_batch_size
    return size * CHANNELS * side**2
