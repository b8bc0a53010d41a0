"""Operations of our models on a tape: what each keeps for its gradient, and makes on the way.

Sizes are those of PyTorch's eager kernels, whose source is named where they differ by device. On
the CPU they equal what fake tensors show, to the byte; those of CUDA are read from its kernels.
"""

from dataclasses import dataclass

from training.memory.ledger import Buffer
from training.memory.tape import Tape, Value, Weight

FP32 = 4
"""Bytes."""


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """Of a linear layer."""

    weight: Weight
    bias: Weight | None
    num_out: int


def embedding(tape: Tape, indices: Value, weight: Weight, *, numel: int) -> Value:
    """Rows of a table; the gradient is a whole table, zero where no row was looked up."""
    width = tape.weight_width
    output = _new(tape, numel, width)
    return tape.record(
        (indices,), output, saved=(indices.buffer,), weights=((weight, width),), gradients=(0,)
    )


def linear(
    tape: Tape, x: Value, weights: LinearWeights, *, num_in: int, is_used: bool = True
) -> Value:
    """A matrix product; keeps its input. `selective` keeps the result, compiled only one that
    `is_used` by something behind it in the backward pass.
    """
    x = cast(tape, x, tape.width)
    if tape.autocast and tape.width < 4:
        _cast_weight(tape, weights.weight)
    numel = x.numel // num_in * weights.num_out
    book = tape.book_product if is_used or not tape.compiled else tape.book
    output = Value(book(numel * tape.width), numel, tape.width, None)
    own = [(weights.weight, tape.width)] + ([(weights.bias, tape.width)] if weights.bias else [])
    saved = (x.buffer,) if weights.weight.cast is None else (x.buffer, weights.weight.cast)
    return tape.record(
        (x,), output, saved=saved, weights=tuple(own), gradients=(x.numel * x.width,)
    )


def layer_norm(
    tape: Tape, x: Value, weights: tuple[Weight, ...], *, width: int, kept: Buffer | None = None
) -> Value:
    """Keeps its input, or what is to be `kept` instead, and mean and deviation of each row: fp32 on
    CUDA, as the input on the CPU.

    Under autocast CUDA computes it in fp32, the CPU as the input is.
    """
    if tape.device != "cpu":
        x = cast(tape, x, tape.weight_width)
    output = _new(tape, x.numel, x.width)
    of_row = x.width if tape.device == "cpu" else 4
    statistics = tape.book(2 * of_row * (x.numel // width))
    return tape.record(
        (x,),
        output,
        saved=(kept or x.buffer, statistics),
        weights=_with_width(tape, weights),
        gradients=(x.numel * x.width,),
    )


def rms_norm(
    tape: Tape, x: Value, weights: tuple[Weight, ...], *, width: int, kept: Buffer | None = None
) -> Value:
    """One kernel on CUDA, which keeps its input or what is to be `kept` instead; on the CPU a chain
    of operations in fp32, two of which are kept.
    """
    x = cast(tape, x, tape.weight_width)
    deviation = tape.book(4 * (x.numel // width))
    gradient = (x.numel * x.width,)
    if tape.device != "cpu":
        output = _new(tape, x.numel, x.width)
        saved = (kept or x.buffer, deviation)
        own = _with_width(tape, weights)
        return tape.record((x,), output, saved=saved, weights=own, gradients=gradient)
    exact = x.buffer if x.width == 4 else tape.book(4 * x.numel)
    normed = tape.book(4 * x.numel)
    result = tape.book(4 * x.numel)
    if x.width < 4:
        result = tape.book(x.width * x.numel)
    return tape.record(
        (x,),
        Value(result, x.numel, x.width, None),
        saved=(exact, deviation, normed),
        weights=_with_width(tape, weights),
        gradients=gradient,
        workspace=(12 if x.width < FP32 else 8) * x.numel,
    )


def activation(tape: Tape, x: Value) -> Value:
    """GELU or SiLU: keeps its input."""
    output = _new(tape, x.numel, x.width)
    return tape.record((x,), output, saved=(x.buffer,), gradients=(x.numel * x.width,))


def relu(tape: Tape, x: Value) -> Value:
    """Keeps its result."""
    output = _new(tape, x.numel, x.width)
    return tape.record((x,), output, saved=(output.buffer,), gradients=(x.numel * x.width,))


def multiply(tape: Tape, a: Value, b: Value) -> Value:
    """Element by element: keeps both."""
    output = _new(tape, a.numel, a.width)
    size = a.numel * a.width
    return tape.record((a, b), output, saved=(a.buffer, b.buffer), gradients=(size, size))


def scale(tape: Tape, x: Value, weight: Weight) -> Value:
    """By a learned factor for each feature: keeps its input."""
    width = max(x.width, tape.weight_width)
    output = _new(tape, x.numel, width)
    size = x.numel * width
    return tape.record(
        (x,),
        output,
        saved=(x.buffer,),
        weights=((weight, tape.weight_width),),
        gradients=(x.numel * x.width,),
        workspace=size,
    )


def add(tape: Tape, a: Value, b: Value) -> Value:
    """Keeps nothing, and hands the gradient on to both, as it is where widths are equal."""
    width = max(a.width, b.width)
    output = _new(tape, a.numel, width)
    sizes = tuple(0 if one.width == width else one.numel * one.width for one in (a, b))
    return tape.record((a, b), output, gradients=sizes)


def dropout(tape: Tape, x: Value) -> Value:
    """Keeps what was dropped: a byte an element on CUDA, a factor as wide as it on the CPU."""
    mask = tape.book(x.numel * (x.width if tape.device == "cpu" else 1))
    output = _new(tape, x.numel, x.width)
    return tape.record((x,), output, saved=(mask,), gradients=(x.numel * x.width,))


def drop_samples(tape: Tape, x: Value) -> Value:
    """Stochastic depth: keeps a factor for each sample, which is nothing."""
    output = _new(tape, x.numel, x.width)
    return tape.record((x,), output, gradients=(x.numel * x.width,))


def cast(tape: Tape, x: Value, width: int) -> Value:
    """To another precision, where it is one."""
    if x.width == width:
        return x
    output = _new(tape, x.numel, width)
    return tape.record((x,), output, gradients=(x.numel * x.width,))


def _new(tape: Tape, numel: int, width: int) -> Value:
    return Value(tape.book(numel * width), numel, width, None)


def _cast_weight(tape: Tape, weight: Weight) -> None:
    """Autocast makes one copy of a weight in a forward pass."""
    if weight.cast is None:
        weight.cast = tape.ledger.book("weights under autocast", weight.numel * tape.width)
        tape.casts.append(weight)


def _with_width(tape: Tape, weights: tuple[Weight, ...]) -> tuple[tuple[Weight, int], ...]:
    return tuple((weight, tape.weight_width) for weight in weights)
