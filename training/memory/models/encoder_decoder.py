"""The encoder-decoder Transformer on a tape."""

from collections.abc import Callable

from training.memory.cross_attention import Biased, DecoderBlock, EncoderBlock, Source
from training.memory.layers import (
    BlockShape,
    flat_weights,
    linear_weights,
    norm,
    norm_weights,
    run_blocks,
)
from training.memory.operations import dropout, embedding, linear
from training.memory.tape import Tape, Value, Weight
from training.models.encoder_decoder import Config


class Model:
    """`logits(decode(tokens, encode(source)))`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.shape = _block_shape(config)
        self.embedding = Weight(config.vocab_size * config.d_model)
        tables = 2 * (config.positions == "relative")
        self.tables = [Weight(config.num_buckets * config.num_heads) for _ in range(tables)]
        rectified = config.activation == "relu"
        self.encoder = [
            EncoderBlock(self.shape, rectified=rectified) for _ in range(config.num_layers)
        ]
        self.decoder = [
            DecoderBlock(self.shape, rectified=rectified) for _ in range(config.num_decoder_layers)
        ]
        self.norms = [norm_weights(self.shape), norm_weights(self.shape)]
        self.head = linear_weights(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head = type(self.head)(self.embedding, None, config.vocab_size)

    def weights(self) -> list[Weight]:
        """All of them, tied ones once."""
        head = [] if self.config.tie_embeddings else flat_weights(self.head)
        blocks = [w for block in (*self.encoder, *self.decoder) for w in block.weights()]
        norms = [weight for norm in self.norms for weight in norm]
        return [self.embedding, *self.tables, *blocks, *norms, *head]

    def features(
        self,
        tape: Tape,
        *,
        num_rows: int,
        num_source: int,
        num_positions: int,
        masked: bool,
        keeping: Callable[[int], str],
    ) -> Value:
        """In front of the head."""
        source = self._source(
            tape, num_rows=num_rows, num_source=num_source, masked=masked, keeping=keeping
        )
        x = self._embed(tape, num_rows * num_positions)
        mask = tape.book(num_rows * num_positions * num_source) if masked else None
        return self._decode(
            tape,
            x,
            Source(source, num_source, mask),
            self._sequences(tape, 1, num_rows=num_rows, length=num_positions, masked=masked),
            keeping=keeping,
        )

    def logits(self, tape: Tape, features: Value) -> Value:
        """Of the next token; the factor makes a copy."""
        size = features.numel * features.width
        scaled = Value(tape.book(size), features.numel, features.width, None)
        scaled = tape.record((features,), scaled, gradients=(size,))
        return linear(tape, scaled, self.head, num_in=self.config.d_model)

    def _embed(self, tape: Tape, num_tokens: int) -> Value:
        tape.enter("embedding")
        numel = num_tokens * self.config.d_model
        x = embedding(tape, tape.leaf(0), self.embedding, numel=numel)
        return dropout(tape, x) if self.config.dropout else x

    def _source(
        self,
        tape: Tape,
        *,
        num_rows: int,
        num_source: int,
        masked: bool,
        keeping: Callable[[int], str],
    ) -> Value:
        x = self._embed(tape, num_rows * num_source)
        sequences = self._sequences(tape, 0, num_rows=num_rows, length=num_source, masked=masked)
        x = run_blocks(
            tape, x, list(self.encoder), sequences, name="encoder block", keeping=keeping
        )
        tape.enter("encoder norm")
        return norm(tape, x, self.norms[0], self.shape)

    def _decode(
        self,
        tape: Tape,
        x: Value,
        source: Source,
        sequences: Biased,
        *,
        keeping: Callable[[int], str],
    ) -> Value:
        for number, block in enumerate(self.decoder):
            tape.enter(f"decoder block {number + 1}")

            def compute(value: Value, block: DecoderBlock = block) -> Value:
                return block.look(tape, value, sequences, source)

            mode = keeping(len(self.encoder) + number)
            x = compute(x) if mode == "none" else tape.checkpoint(compute, x, mode)
        tape.enter("final norm")
        return norm(tape, x, self.norms[1], self.shape)

    def _sequences(
        self, tape: Tape, stack: int, *, num_rows: int, length: int, masked: bool
    ) -> Biased:
        """Rotation and mask, or a bias in which the mask is; `stack` is 0 of the encoder."""
        mask = tape.book(num_rows * length**2) if masked else None
        if not self.tables:
            rotation = tape.leaf(4 * length * self.config.head_dim)
            return Biased(num_rows, length, rotation, mask)
        num_pairs = length**2
        buckets = tape.leaf(8 * num_pairs)
        bias = embedding(tape, buckets, self.tables[stack], numel=num_pairs * self.config.num_heads)
        if masked or stack:  # what is hidden is minus infinity in a copy
            size = bias.numel * bias.width
            numel = bias.numel * (num_rows if masked else 1)
            hides = mask or tape.book(num_pairs)
            hidden = Value(tape.book(numel * bias.width), numel, bias.width, None)
            bias = tape.record((bias,), hidden, saved=(hides,), gradients=(size,))
        return Biased(num_rows, length, bias=bias)


def _block_shape(config: Config) -> BlockShape:
    return BlockShape(
        d_model=config.d_model,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        d_ff=config.d_ff,
        gated=config.is_gated,
        rms=True,
        bias=False,
        norm_bias=False,
        dropout=config.dropout,
        attention_dropout=config.dropout,
    )
