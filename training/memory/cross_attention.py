"""Blocks of an encoder-decoder on a tape: attention with a bias, attention to a source."""

from dataclasses import dataclass

from training.memory.layers import (
    Block,
    BlockShape,
    Sequences,
    attend,
    flat_weights,
    linear_weights,
    norm,
    norm_weights,
    weigh_pairs,
)
from training.memory.ledger import Buffer
from training.memory.operations import FP32, add, cast, dropout, linear, relu
from training.memory.tape import Tape, Value, Weight


@dataclass(frozen=True, slots=True)
class Biased(Sequences):
    """What attention is told, and a bias of all pairs that all blocks share."""

    bias: Value | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What a decoder attends to."""

    features: Value
    num_positions: int
    mask: Buffer | None = None
    """Of booleans for all pairs, which each layer turns into numbers."""


class EncoderBlock(Block):
    """Attention with the bias that `sequences` may have, then feed-forward."""

    def __init__(self, shape: BlockShape, *, rectified: bool) -> None:
        super().__init__(shape)
        self.rectified = rectified

    def _attend(self, tape: Tape, x: Value, sequences: Sequences) -> Value:
        shape = self.shape
        heads = linear(tape, x, self.query_key_value, num_in=shape.d_model)
        del x
        if isinstance(sequences, Biased) and sequences.bias is not None:
            attended = attend_with_bias(tape, heads, shape, sequences, sequences.bias)
        else:
            attended = attend(tape, heads, shape, sequences, [])
        return linear(tape, attended, self.output, num_in=shape.num_attended)

    def _feed_forward(self, tape: Tape, x: Value) -> Value:
        if not self.rectified:
            return super()._feed_forward(tape, x)
        raised = relu(tape, linear(tape, x, self.ups[0], num_in=self.shape.d_model))
        return linear(tape, raised, self.down, num_in=self.shape.d_ff)


class DecoderBlock(EncoderBlock):
    """Attention, attention to a source, feed-forward."""

    def __init__(self, shape: BlockShape, *, rectified: bool) -> None:
        super().__init__(shape, rectified=rectified)
        self.cross_norm = norm_weights(shape)
        self.query = linear_weights(shape.d_model, shape.num_attended, bias=shape.bias)
        self.key_value = linear_weights(shape.d_model, 2 * shape.num_shared, bias=shape.bias)
        self.cross_output = linear_weights(shape.num_attended, shape.d_model, bias=shape.bias)

    def weights(self) -> list[Weight]:
        """All of them."""
        of_linear = flat_weights(self.query, self.key_value, self.cross_output)
        return [*super().weights(), *of_linear, *self.cross_norm]

    def look(self, tape: Tape, x: Value, sequences: Sequences, source: Source) -> Value:
        """The block's forward."""
        normed = norm(tape, x, self.norms[0], self.shape)
        x = add(tape, x, self._join(tape, self._attend(tape, normed, sequences), 0))
        normed = norm(tape, x, self.cross_norm, self.shape)
        x = add(tape, x, self._join(tape, self._cross(tape, normed, sequences, source), 0))
        normed = norm(tape, x, self.norms[1], self.shape)
        return add(tape, x, self._join(tape, self._feed_forward(tape, normed), 1))

    def _cross(self, tape: Tape, x: Value, sequences: Sequences, source: Source) -> Value:
        shape = self.shape
        q = linear(tape, x, self.query, num_in=shape.d_model)
        del x
        k_v = linear(tape, source.features, self.key_value, num_in=shape.d_model)
        if shape.attention_dropout and tape.device == "cpu":
            attended = _cross_without_kernel(tape, q, k_v, shape, source)
            return linear(tape, attended, self.cross_output, num_in=shape.num_attended)
        sums = tape.book_product(FP32 * sequences.num_tokens * shape.num_heads)
        output = Value(tape.book_product(q.numel * q.width), q.numel, q.width, None)
        pairs = sequences.num_tokens * source.num_positions
        masked = [tape.book(q.width * pairs)] if source.mask is not None else []
        attended = tape.record(
            (q, k_v),
            output,
            saved=(q.buffer, k_v.buffer, *masked, sums, output.buffer),
            gradients=(q.numel * q.width, k_v.numel * k_v.width),
        )
        return linear(tape, attended, self.cross_output, num_in=shape.num_attended)


def attend_with_bias(
    tape: Tape, heads: Value, shape: BlockShape, sequences: Sequences, bias: Value
) -> Value:
    """Attended features; the kernel of a GPU makes the gradient of the bias for every row first."""
    size, values, width = heads.numel * heads.width, heads.buffer, heads.width
    for _ in range(2):  # as in `attend`
        heads = tape.record((heads,), Value(values, heads.numel, width, None), gradients=(size,))
    num_pairs = sequences.num_tokens * sequences.num_positions * shape.num_heads
    if tape.device == "cpu":
        return _attend_without_kernel(tape, heads, shape, bias, num_pairs)
    numel = sequences.num_tokens * shape.num_attended
    sums = tape.book_product(FP32 * sequences.num_tokens * shape.num_heads)
    output = Value(tape.book_product(numel * width), numel, width, None)
    return tape.record(
        (heads, bias),
        output,
        saved=(values, bias.buffer, sums, output.buffer),
        gradients=(size, bias.numel * bias.width),
        workspace=width * num_pairs,
    )


def _attend_without_kernel(
    tape: Tape, heads: Value, shape: BlockShape, bias: Value, num_pairs: int
) -> Value:
    """A bias that learns has no kernel on the CPU: queries, keys, values and weights in fp32."""
    numel, width, of_pairs = heads.numel // 3, heads.width, FP32 * num_pairs
    scaled, values = tape.book(2 * FP32 * numel), tape.book(FP32 * numel)
    product = tape.book_product(of_pairs)
    biased = tape.book(of_pairs)
    del product
    scores = tape.record(
        (heads, bias),
        Value(biased, num_pairs, FP32, None),
        saved=(scaled,),
        gradients=(heads.numel * width, bias.numel * bias.width),
        workspace=3 * FP32 * numel,
    )
    weights = Value(tape.book(of_pairs), num_pairs, FP32, None)
    del biased
    tape.record((scores,), weights, saved=(weights.buffer,), gradients=(of_pairs,))
    del scores
    if shape.attention_dropout:
        weights = dropout(tape, weights)
    result = Value(tape.book_product(FP32 * numel), numel, FP32, None)
    tape.record(
        (weights, heads),
        result,
        saved=(weights.buffer, values),
        gradients=(of_pairs, FP32 * numel),
    )
    return cast(tape, result, width)


def _cross_without_kernel(
    tape: Tape, q: Value, k_v: Value, shape: BlockShape, source: Source
) -> Value:
    """Dropout of attention has no kernel on the CPU; as `layers._attend_without_kernel`."""
    num_tokens = q.numel // shape.num_attended
    pairs = FP32 * num_tokens * source.num_positions * shape.num_heads
    exact = [tape.book(FP32 * one.numel) for one in (q, k_v)]
    weights = weigh_pairs(tape, pairs)
    result = tape.book_product(FP32 * q.numel)
    output = Value(result, q.numel, q.width, None)
    if q.width < FP32:
        output = Value(tape.book(q.numel * q.width), q.numel, q.width, None)
    del result
    return tape.record(
        (q, k_v),
        output,
        saved=(*exact, *weights),
        gradients=(q.numel * q.width, k_v.numel * k_v.width),
        workspace=pairs + FP32 * k_v.numel // 2 * (k_v.width < FP32),  # the values once more
    )
