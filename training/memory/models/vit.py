"""The Vision Transformer on a tape."""

from collections.abc import Callable

from training.memory.image_encoder import Encoder
from training.memory.layers import flat_weights, linear_weights
from training.memory.operations import linear
from training.memory.tape import Tape, Value, Weight
from training.models.vit import Config


class Model:
    """`head(pool(encoder(pixels)))`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.encoder = Encoder(config)
        self.head = linear_weights(config.d_model, config.num_classes, bias=True)

    def weights(self) -> list[Weight]:
        """All of them."""
        return [*self.encoder.weights(), *flat_weights(self.head)]

    def logits(
        self,
        tape: Tape,
        pixels: Value,
        *,
        num_images: int,
        keeping: Callable[[int], str],
    ) -> Value:
        """Of the classes."""
        features = self.encoder.forward(tape, pixels, num_images=num_images, keeping=keeping)
        tape.enter("head")
        numel = num_images * self.config.d_model
        size = features.numel * features.width
        if self.config.pooling == "class_token":
            pooled = Value(features.buffer, numel, features.width, None)
        else:
            pooled = Value(tape.book(numel * features.width), numel, features.width, None)
        pooled = tape.record((features,), pooled, gradients=(size,))
        return linear(tape, pooled, self.head, num_in=self.config.d_model)
