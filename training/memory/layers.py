"""The layers of `training/layers/` on a tape: the same parts in the same order."""

from collections.abc import Callable
from dataclasses import dataclass

from training.memory.ledger import Buffer
from training.memory.operations import (
    FP32,
    LinearWeights,
    activation,
    add,
    drop_samples,
    dropout,
    layer_norm,
    linear,
    multiply,
    rms_norm,
    scale,
)
from training.memory.tape import Tape, Value, Weight


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What the memory of a block depends on."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    gated: bool = False
    """SwiGLU in the place of GELU."""
    rms: bool = False
    """RMSNorm in the place of layernorm."""
    bias: bool = True
    norm_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    qk_norm: bool = False
    layer_scale: bool = False
    stochastic_depth: float = 0.0

    @property
    def num_attended(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def num_shared(self) -> int:
        """Features of all key heads, as many as of value heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Sequences:
    """What attention is told: rows and positions, and what all blocks share."""

    num_rows: int
    num_positions: int
    rotation: Value | None = None
    mask: Buffer | None = None
    """Of booleans for all pairs, which each layer turns into numbers."""
    goes_by_boundaries: bool = False
    """Of documents, in the place of a mask."""
    sharing_ranks: int = 1
    """That share each row: here are the positions of one of them."""

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.num_positions

    @property
    def num_seen(self) -> int:
        """Positions of a whole row, which attention sees."""
        return self.num_positions * self.sharing_ranks


class Block:
    """Attention, then feed-forward, each behind a norm and in front of an addition."""

    def __init__(self, shape: BlockShape) -> None:
        self.shape = shape
        both = shape.num_attended + 2 * shape.num_shared
        self.norms = [norm_weights(shape), norm_weights(shape)]
        self.query_key_value = linear_weights(shape.d_model, both, bias=shape.bias)
        self.output = linear_weights(shape.num_attended, shape.d_model, bias=shape.bias)
        self.head_norms = [norm_weights(shape, shape.head_dim) for _ in range(2 * shape.qk_norm)]
        ups = 2 if shape.gated else 1
        self.ups = [linear_weights(shape.d_model, shape.d_ff, bias=shape.bias) for _ in range(ups)]
        self.down = linear_weights(shape.d_ff, shape.d_model, bias=shape.bias)
        self.scales = [Weight(shape.d_model, matrix=False) for _ in range(2 * shape.layer_scale)]

    def weights(self) -> list[Weight]:
        """All of them."""
        of_linear = (self.query_key_value, self.output, *self.ups, self.down)
        return [
            *flat_weights(*of_linear),
            *(weight for norm in (*self.norms, *self.head_norms) for weight in norm),
            *self.scales,
        ]

    def forward(self, tape: Tape, x: Value, sequences: Sequences) -> Value:
        normed = norm(tape, x, self.norms[0], self.shape)
        attended = self._join(tape, self._attend(tape, normed, sequences), 0)
        x = add(tape, x, attended)
        # Compiled, the sum is computed again, from what is narrower than it under autocast.
        kept = attended.buffer if tape.compiled and attended.width < x.width else None
        del normed, attended
        normed = norm(tape, x, self.norms[1], self.shape, kept=kept)
        del kept
        return add(tape, x, self._join(tape, self._feed_forward(tape, normed), 1))

    def _attend(self, tape: Tape, x: Value, sequences: Sequences) -> Value:
        shape = self.shape
        heads = linear(tape, x, self.query_key_value, num_in=shape.d_model)
        del x
        attended = attend(tape, heads, shape, sequences, self.head_norms)
        return linear(tape, attended, self.output, num_in=shape.num_attended)

    def _feed_forward(self, tape: Tape, x: Value) -> Value:
        shape = self.shape
        if not shape.gated:
            raised = linear(tape, x, self.ups[0], num_in=shape.d_model)
            raised = activation(tape, raised)
        else:
            gate = linear(tape, x, self.ups[0], num_in=shape.d_model)
            # Compiled, the activation of the gate is computed again from the gate.
            gate = gate if tape.compiled else activation(tape, gate)
            raised = linear(tape, x, self.ups[1], num_in=shape.d_model)
            raised = multiply(tape, gate, raised)
            del gate
        return linear(tape, raised, self.down, num_in=shape.d_ff, is_used=bool(self.scales))

    def _join(self, tape: Tape, x: Value, part: int) -> Value:
        if self.scales:
            x = scale(tape, x, self.scales[part])
        if self.shape.dropout:
            x = dropout(tape, x)
        return drop_samples(tape, x) if self.shape.stochastic_depth else x


def attend(
    tape: Tape,
    heads: Value,
    shape: BlockShape,
    sequences: Sequences,
    head_norms: list[tuple[Weight, ...]],
) -> Value:
    """Attended features of queries, keys and values, which lie in one tensor."""
    width, num_tokens = heads.width, sequences.num_tokens
    values = heads.buffer
    size = heads.numel * width
    # The gradients of queries, keys and values come together twice: once heads first, once tokens.
    for _ in range(2):
        heads = tape.record((heads,), Value(values, heads.numel, width, None), gradients=(size,))
    num_turned = num_tokens * (shape.num_attended + shape.num_shared)
    if head_norms:
        weights = (*head_norms[0], *head_norms[1])
        normed = Value(values, num_turned, width, heads.node)
        heads = layer_norm(tape, normed, weights, width=shape.head_dim)
    if sequences.rotation is not None:
        heads = _rotate(tape, heads, num_turned, sequences.rotation)
    if sequences.sharing_ranks > 1:
        heads = _share_heads(tape, heads, shape, sequences)
        size, values = heads.numel * width, heads.buffer
    if sequences.goes_by_boundaries and heads.buffer is not values:
        tape.ledger.visit(tape.kind, num_turned * width)  # laid out anew, token by token
    kept = [values] if heads.buffer is values else [values, heads.buffer]
    masked = [_mask(tape, sequences, width)] if sequences.mask is not None else []
    if shape.attention_dropout and tape.device == "cpu":
        return _attend_without_kernel(tape, heads, shape, sequences, [*kept, *masked])
    sums = tape.book_product(FP32 * num_tokens * shape.num_heads)
    output = Value(
        tape.book_product(num_tokens * shape.num_attended * width),
        num_tokens * shape.num_attended,
        width,
        None,
    )
    attended = tape.record(
        (heads,),
        output,
        saved=(*kept, *masked, sums, output.buffer),
        gradients=(size,),
        workspace=_kernel_workspace(tape, shape, num_tokens),
    )
    if sequences.sharing_ranks > 1:
        return _tokens_first(tape, _exchange(tape, attended, attended.numel))
    lies_head_by_head = heads.buffer is not values and not sequences.goes_by_boundaries
    return _tokens_first(tape, attended) if lies_head_by_head else attended


def _share_heads(tape: Tape, heads: Value, shape: BlockShape, sequences: Sequences) -> Value:
    """Queries, keys and values of all positions, of this rank's share of the heads: as many."""
    num_queries, num_all = shape.num_heads, shape.num_heads + 2 * shape.num_kv_heads
    numel = sequences.num_tokens * num_all * shape.head_dim
    heads = Value(heads.buffer, numel, heads.width, heads.node)  # values beside turned queries
    if shape.num_kv_heads % sequences.sharing_ranks:  # each query head gets keys of its own
        repeated = numel // num_all * 3 * num_queries
        size = numel * heads.width
        kept = Value(tape.book(repeated * heads.width), repeated, heads.width, None)
        heads = tape.record((heads,), kept, gradients=(size,))
    return _exchange(tape, heads, sequences.num_tokens * shape.num_attended)


def _exchange(tape: Tape, x: Value, largest: int) -> Value:
    """All-to-all between the ranks that share a row, of as many elements as one call takes: what is
    sent lies together first, what has come is brought in order.
    """
    size, workspace = x.numel * x.width, 2 * largest * x.width
    tape.ledger.visit(tape.kind, workspace)
    exchanged = Value(tape.book(size), x.numel, x.width, None)
    # Behind the first of several calls one gradient has been replaced.
    beside = max(0, workspace + largest * x.width - size)
    return tape.record((x,), exchanged, gradients=(size,), workspace=beside)


def _tokens_first(tape: Tape, attended: Value) -> Value:
    """The kernels lay their result out as the queries; those made anew lie head by head."""
    size = attended.numel * attended.width
    moved = Value(tape.book(size), attended.numel, attended.width, None)
    return tape.record((attended,), moved, gradients=(0,))


def _rotate(tape: Tape, heads: Value, numel: int, rotation: Value) -> Value:
    """Queries and keys turned in fp32, one after the other, then as wide as they were."""
    workspace = 2 * FP32 * numel
    tape.ledger.visit(tape.kind, workspace)
    turned = Value(tape.book(numel * heads.width), numel, heads.width, None)
    return tape.record(
        (heads,),
        turned,
        saved=(rotation.buffer,),
        gradients=(heads.numel * heads.width,),
        workspace=workspace,
    )


def _mask(tape: Tape, sequences: Sequences, width: int) -> Buffer:
    """Every layer turns the mask of booleans into numbers to add, and keeps them."""
    return tape.book(width * sequences.num_rows * sequences.num_seen**2)


def _kernel_workspace(tape: Tape, shape: BlockShape, num_tokens: int) -> int:
    """Of FlashAttention 2's backward: gradients of queries add up in fp32, those of shared keys and
    values are made for every query head first (flash_api.cpp: dq_accum, dk_expanded, dv_expanded).
    """
    if tape.device == "cpu":
        return 0
    accumulated = FP32 * num_tokens * (shape.num_attended + shape.num_heads)
    shared = shape.num_kv_heads < shape.num_heads
    return accumulated + shared * 2 * tape.width * num_tokens * shape.num_attended


def _attend_without_kernel(
    tape: Tape, heads: Value, shape: BlockShape, sequences: Sequences, kept: list[Buffer]
) -> Value:
    """Dropout of attention has no kernel on the CPU: weights of all pairs, in fp32, three times.

    In 16 bits queries, keys and values in fp32 stay there to the end of the forward pass, beside
    the scaled queries and the result in fp32, and weights come in 16 bits once more. Scores and
    result are products, which `selective` keeps.
    """
    num_tokens, numel = sequences.num_tokens, sequences.num_tokens * shape.num_attended
    pairs = FP32 * num_tokens * sequences.num_seen * shape.num_heads
    exact = [tape.book(FP32 * numel) for _ in range(3)]
    weights = weigh_pairs(tape, pairs)
    result = tape.book_product(FP32 * numel)
    output = Value(result, numel, FP32, None)
    if heads.width < FP32:
        output = Value(tape.book(numel * heads.width), numel, heads.width, None)
        tape.ledger.visit(tape.kind, 4 * FP32 * numel + pairs // FP32 * heads.width)
    del kept, result
    return tape.record(
        (heads,),
        output,
        saved=(*exact, *weights),
        gradients=(heads.numel * heads.width,),
        workspace=pairs,
    )


def weigh_pairs(tape: Tape, num_bytes: int) -> list[Buffer]:
    """Scores, then weights three times: as they are, what dropout keeps, and what it leaves."""
    scores = tape.book_product(num_bytes)
    weights = [tape.book(num_bytes)]
    del scores
    weights += [tape.book(num_bytes) for _ in range(2)]
    # Where all is computed again, but for those that the values are about to be weighed by.
    return weights[-1:] * 3 if tape.keeps_nothing else weights


def norm(
    tape: Tape,
    x: Value,
    weights: tuple[Weight, ...],
    shape: BlockShape,
    *,
    kept: Buffer | None = None,
) -> Value:
    """In front of attention, feed-forward and head; see `layer_norm`."""
    of_kind = rms_norm if shape.rms else layer_norm
    return of_kind(tape, x, weights, width=shape.d_model, kept=kept)


def norm_weights(shape: BlockShape, width: int = 0) -> tuple[Weight, ...]:
    """A factor and, of layernorm, a bias for each feature."""
    both = not shape.rms and shape.norm_bias
    return tuple(Weight(width or shape.d_model, matrix=False) for _ in range(1 + both))


def linear_weights(num_in: int, num_out: int, *, bias: bool) -> LinearWeights:
    """Of a linear layer."""
    return LinearWeights(
        Weight(num_in * num_out), Weight(num_out, matrix=False) if bias else None, num_out
    )


def flat_weights(*layers: LinearWeights) -> list[Weight]:
    """Weights and biases of linear layers."""
    return [one for layer in layers for one in (layer.weight, layer.bias) if one is not None]


def run_blocks(
    tape: Tape,
    x: Value,
    blocks: list[Block],
    sequences: Sequences,
    *,
    name: str,
    keeping: Callable[[int], str],
) -> Value:
    """One block after another; `keeping` says what is kept of each, as activation checkpointing."""
    for number, block in enumerate(blocks):
        tape.enter(f"{name} {number + 1}")

        def compute(value: Value, block: Block = block) -> Value:
            return block.forward(tape, value, sequences)

        mode = keeping(number)
        x = compute(x) if mode == "none" else tape.checkpoint(compute, x, mode)
    return x
