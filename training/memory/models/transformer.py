"""The decoder Transformer on a tape."""

from collections.abc import Callable

from training.layers.document_attention import HAS_KERNEL
from training.memory.layers import (
    Block,
    BlockShape,
    Sequences,
    flat_weights,
    linear_weights,
    norm,
    norm_weights,
    run_blocks,
)
from training.memory.operations import add, dropout, embedding, linear
from training.memory.tape import Tape, Value, Weight
from training.models.transformer import Config


class Model:
    """`logits(features(...))`."""

    def __init__(self, config: Config, *, weight_ranks: int = 1) -> None:
        """With the blocks of one of `weight_ranks` that share their weights (AutoTP)."""
        self.config = config
        self.shape = block_shape(config, weight_ranks=weight_ranks)
        self.embedding = Weight(config.vocab_size * config.d_model)
        self.table = None
        if config.positions == "learned":
            self.table = Weight(config.max_positions * config.d_model)
        self.blocks = [Block(self.shape) for _ in range(config.num_layers)]
        self.norm = norm_weights(self.shape)
        self.head = linear_weights(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head = type(self.head)(self.embedding, None, config.vocab_size)

    def weights(self) -> list[Weight]:
        """All of them, tied ones once."""
        head = [] if self.config.tie_embeddings else flat_weights(self.head)
        tables = [self.embedding, *([self.table] if self.table else [])]
        return [*tables, *(w for block in self.blocks for w in block.weights()), *self.norm, *head]

    def features(
        self,
        tape: Tape,
        *,
        num_rows: int,
        num_positions: int,
        masked: bool,
        keeping: Callable[[int], str],
        sharing_ranks: int = 1,
    ) -> Value:
        """In front of the head; `num_positions` are those of this rank."""
        has_positions = masked or sharing_ranks > 1  # those of each row are told
        numel = num_rows * num_positions * self.config.d_model
        tape.enter("embedding")
        x = embedding(tape, tape.leaf(0), self.embedding, numel=numel)
        rotation = None
        if self.table is not None:
            rows = num_positions * (num_rows if has_positions else 1)
            positions = tape.leaf(8 * rows)
            x = add(
                tape, x, embedding(tape, positions, self.table, numel=rows * self.config.d_model)
            )
        elif self.config.positions == "rotary":
            rows = num_rows if has_positions else 1
            rotation = tape.leaf(4 * rows * num_positions * self.config.head_dim)
        else:
            x = add(tape, x, Value(tape.book(numel * x.width), numel, x.width, None))
        goes_by_boundaries = masked and self._has_kernel(tape)
        is_mask = masked and not goes_by_boundaries
        num_pairs = num_rows * (num_positions * sharing_ranks) ** 2
        mask = tape.book(num_pairs) if is_mask else None
        if self.config.dropout:
            x = dropout(tape, x)
        sequences = Sequences(
            num_rows, num_positions, rotation, mask, goes_by_boundaries, sharing_ranks
        )
        x = run_blocks(tape, x, self.blocks, sequences, name="block", keeping=keeping)
        del sequences, mask
        tape.enter("final norm")
        return norm(tape, x, self.norm, self.shape)

    def _has_kernel(self, tape: Tape) -> bool:
        """As `kernel_takes` decides on a GPU."""
        fits = not self.config.dropout and self.config.head_dim % 8 == 0
        return HAS_KERNEL and tape.device != "cpu" and tape.width == 2 and fits

    def logits(self, tape: Tape, features: Value) -> Value:
        """Of the next token."""
        return linear(tape, features, self.head, num_in=self.config.d_model)


def block_shape(config: Config, *, weight_ranks: int = 1) -> BlockShape:
    """Of all blocks: a rank's share of heads and of the feed-forward."""
    return BlockShape(
        d_model=config.d_model,
        num_heads=config.num_heads // weight_ranks,
        num_kv_heads=config.num_kv_heads // weight_ranks,
        head_dim=config.head_dim,
        d_ff=config.d_ff // weight_ranks,
        gated=config.activation == "swiglu",
        rms=config.norm == "rmsnorm",
        bias=config.bias,
        norm_bias=config.bias,
        dropout=config.dropout,
        attention_dropout=config.dropout,
    )
