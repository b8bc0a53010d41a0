"""The Vision Transformer: pixels -> image encoder -> one vector for the image -> class logits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.layers.image_encoder import EncoderConfig, ImageEncoder
from training.layers.image_positions import adapt_positions
from training.layers.linear import Linear

OUTPUT = "classes"
"""What the model gives: logits of the classes of an image. A task says which it needs."""


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Shape and parts of a ViT. The defaults are ViT-B/16's at 224 pixels."""

    num_classes: int
    """Classes, the rows of the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; it must be at least 1")


def num_parameters(config: Config) -> int:
    """Parameters of the model; no memory is touched."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Model(config).parameters())


def adapt(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Weights of another run for this model: learned positions stretch over its image size."""
    return adapt_positions(state, "encoder.positions.table.weight", config.grid)


class Model(nn.Module):
    """A ViT: `head(embed(pixels))`; the encoder has the names of a masked autoencoder's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config)
        # Small, so that training begins at equal chances for all classes.
        self.head = Linear(config.d_model, config.num_classes, bias=True, std=0.01)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, first to last."""
        return self.encoder.blocks

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised pixels (B, C, Y, X)."""
        logits: Tensor = self.head(self.embed(pixels))
        return logits

    def embed(self, pixels: Tensor) -> Tensor:
        """The image's vector (B, D)."""
        return self.encoder.pool(self.encoder(pixels))
