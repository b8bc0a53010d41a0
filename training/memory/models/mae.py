"""The masked autoencoder on a tape."""

import math
from collections.abc import Callable

from training.layers.patches import CHANNELS
from training.memory.image_encoder import Encoder, concatenate
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
from training.memory.operations import add, linear
from training.memory.tape import Tape, Value, Weight
from training.models.mae import Config


class Model:
    """Encoder of the visible patches, decoder of all."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.encoder = Encoder(config)
        width = config.decoder_d_model
        shape = BlockShape(
            d_model=width,
            num_heads=config.decoder_num_heads,
            num_kv_heads=config.decoder_num_heads,
            head_dim=width // config.decoder_num_heads,
            d_ff=config.decoder_d_ff,
        )
        self.embedding = linear_weights(config.d_model, width, bias=True)
        self.mask_token = Weight(width, matrix=False)
        self.blocks = [Block(shape) for _ in range(config.decoder_num_layers)]
        self.norm = norm_weights(shape)
        self.head = linear_weights(width, CHANNELS * config.patch_size**2, bias=True)

    def weights(self) -> list[Weight]:
        """All of them."""
        return [
            *self.encoder.weights(),
            *flat_weights(self.embedding),
            self.mask_token,
            *(weight for block in self.blocks for weight in block.weights()),
            *self.norm,
            *flat_weights(self.head),
        ]

    def patches(
        self,
        tape: Tape,
        pixels: Value,
        *,
        num_images: int,
        keeping: Callable[[int], str],
    ) -> Value:
        """Predicted pixels of all patches."""
        config = self.config
        num_patches, width = math.prod(config.grid), config.decoder_d_model
        features = self.encoder.forward(
            tape,
            pixels,
            num_images=num_images,
            num_seen=config.num_visible(num_patches),
            keeping=keeping,
        )
        tape.enter("decoder embedding")
        seen = linear(tape, features, self.embedding, num_in=config.d_model)
        del features
        placed = self._place(tape, seen, num_images * num_patches * width)
        num_in_front = int(config.class_token)
        x = concatenate(tape, placed, num_images * num_in_front * width)
        sequences = Sequences(num_images, num_patches + num_in_front)
        num_before = len(self.encoder.blocks)
        x = run_blocks(
            tape,
            x,
            self.blocks,
            sequences,
            name="decoder block",
            keeping=lambda number: keeping(num_before + number),
        )
        tape.enter("prediction")
        x = norm(tape, x, self.norm, self.blocks[0].shape)
        numel = num_images * num_patches * width
        inner = Value(x.buffer, numel, x.width, None)
        if num_in_front:  # without the class token; its gradient is zero
            inner = tape.record((x,), inner, gradients=(x.numel * x.width,))
        else:
            inner.node = x.node
        del x
        predicted = linear(tape, self._whole(tape, inner), self.head, num_in=width)
        del seen, placed  # they have names in the decoder, which holds them to its end
        return predicted

    def _place(self, tape: Tape, seen: Value, numel: int) -> Value:
        """The seen patches at their places, the mask token at all others, and where they stand."""
        placed = Value(tape.book(numel * seen.width), numel, seen.width, None)
        token = ((self.mask_token, tape.weight_width),)
        size = seen.numel * seen.width
        placed = tape.record(
            (seen,), placed, weights=token, gradients=(size,), workspace=numel * seen.width
        )
        return add(tape, placed, Value(tape.book(0), numel, placed.width, None))

    def _whole(self, tape: Tape, x: Value) -> Value:
        """A linear layer flattens its input, which copies a slice."""
        if not self.config.class_token:
            return x
        copy = Value(tape.book(x.numel * x.width), x.numel, x.width, None)
        return tape.record((x,), copy, gradients=(0,))
