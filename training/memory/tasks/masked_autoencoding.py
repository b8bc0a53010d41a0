"""Masked autoencoding on a tape."""

import math
from collections.abc import Callable
from typing import Any

from training.memory.operations import FP32, cast
from training.memory.tape import Tape, Value
from training.memory.tasks.image_classification import normalised_pixels, num_pixels


def batch_bytes(config: Any) -> int:
    """8-bit pixels, the noise that hides patches, weights."""
    of_image: int = FP32 * (1 + math.prod(config.model.config.grid))
    size: int = config.batch.micro_batch_size
    return num_pixels(config) + of_image * size


def loss(tape: Tape, model: Any, config: Any, *, keeping: Callable[[int], str]) -> Value:
    """The loss of one micro batch of a training config."""
    pixels = normalised_pixels(tape, config)
    num_images = config.batch.micro_batch_size
    predicted = model.patches(tape, pixels, num_images=num_images, keeping=keeping)
    tape.enter("loss")
    size = FP32 * pixels.numel
    tape.ledger.visit(tape.kind, 3 * size)  # patches, their distance from the mean, the quotient
    target = tape.book(size)
    return _mean_square(tape, predicted, target, pixels)


def _mean_square(tape: Tape, predicted: Value, target: Any, pixels: Value) -> Value:
    """Keeps the differences; its gradient begins with a tensor of their size and makes three.

    The prediction, the target and the pixels have names in the task, which it holds to the end.
    """
    exact = cast(tape, predicted, FP32)
    size = FP32 * exact.numel
    difference = Value(tape.book(size), exact.numel, FP32, None)
    difference = tape.record((exact,), difference, gradients=(0,))
    del exact
    square = Value(tape.book(size), difference.numel, FP32, None)
    square = tape.record(
        (difference,), square, saved=(difference.buffer,), gradients=(size,), workspace=2 * size
    )
    del difference
    total = Value(tape.book(FP32), 1, FP32, None)
    total = tape.record((square,), total, gradients=(size,))
    del square, predicted, target, pixels
    return total
