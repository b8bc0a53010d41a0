"""The image encoder on a tape: what a ViT and a masked autoencoder share."""

import math
from collections.abc import Callable

from training.layers.image_encoder import EncoderConfig
from training.layers.patches import CHANNELS
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


class Encoder:
    """Features of the class token, if there is one, and of each patch that is seen."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.num_pixels = CHANNELS * config.patch_size**2
        self.num_patches = math.prod(config.grid)
        self.patches = linear_weights(self.num_pixels, config.d_model, bias=True)
        self.table = None
        if config.positions == "learned":
            self.table = Weight((self.num_patches + config.class_token) * config.d_model)
        self.class_token = Weight(config.d_model, matrix=False) if config.class_token else None
        self.blocks = [Block(_block_shape(config, n)) for n in range(config.num_layers)]
        self.norm = norm_weights(self.blocks[0].shape)

    def weights(self) -> list[Weight]:
        """All of them."""
        own = [one for one in (self.table, self.class_token) if one is not None]
        of_blocks = [weight for block in self.blocks for weight in block.weights()]
        return [*flat_weights(self.patches), *own, *of_blocks, *self.norm]

    def forward(
        self,
        tape: Tape,
        pixels: Value,
        *,
        num_images: int,
        num_seen: int = 0,
        keeping: Callable[[int], str],
    ) -> Value:
        """Features; `num_seen` patches of each image, or all."""
        config = self.config
        tape.enter("patch embedding")
        x = self._embed(tape, pixels, num_images)
        num_positions = num_seen or self.num_patches
        if num_seen:
            x = _take_seen(tape, x, num_images * num_seen * config.d_model)
        if self.class_token is not None:
            num_positions += 1
            x = concatenate(tape, x, num_images * config.d_model, (self.class_token,))
        if config.dropout:
            x = dropout(tape, x)
        sequences = Sequences(num_images, num_positions)
        x = run_blocks(tape, x, self.blocks, sequences, name="block", keeping=keeping)
        tape.enter("encoder norm")
        return norm(tape, x, self.norm, self.blocks[0].shape)

    def _embed(self, tape: Tape, pixels: Value, num_images: int) -> Value:
        """Patches are the pixels in another order, in fp32 and then as wide as the weights."""
        ordered = tape.book(pixels.numel * 4)
        patches = Value(ordered, pixels.numel, 4, None)
        if tape.weight_width < 4:
            patches = Value(
                tape.book(pixels.numel * tape.weight_width), pixels.numel, tape.weight_width, None
            )
        del ordered
        x = linear(tape, patches, self.patches, num_in=self.num_pixels)
        del patches
        if self.table is None:
            waves = tape.book(self.num_patches * self.config.d_model * x.width)
            return add(tape, x, Value(waves, x.numel, x.width, None))
        numbers = tape.leaf(8 * self.table.numel // self.config.d_model)
        positions = embedding(tape, numbers, self.table, numel=self.table.numel)
        return add(tape, x, positions)


def _take_seen(tape: Tape, x: Value, numel: int) -> Value:
    """Gathers some patches: keeps all of them, and the number of each element, 8 bytes."""
    numbers = tape.book(8 * numel)
    seen = Value(tape.book(numel * x.width), numel, x.width, None)
    size = x.numel * x.width
    return tape.record((x,), seen, saved=(x.buffer, numbers), gradients=(size,))


def concatenate(tape: Tape, x: Value, numel: int, weights: tuple[Weight, ...] = ()) -> Value:
    """More positions in front of the others; gradients are views."""
    total = x.numel + numel
    output = Value(tape.book(total * x.width), total, x.width, None)
    widths = tuple((weight, tape.weight_width) for weight in weights)
    return tape.record((x,), output, weights=widths, gradients=(0,))


def _block_shape(config: EncoderConfig, number: int) -> BlockShape:
    return BlockShape(
        d_model=config.d_model,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.d_model // config.num_heads,
        d_ff=config.d_ff,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        qk_norm=config.qk_norm,
        layer_scale=config.layer_scale > 0,
        stochastic_depth=config.stochastic_depth * number,
    )
