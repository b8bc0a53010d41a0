"""The masked autoencoder (He et al. 2021): most patches are hidden, and their pixels predicted.

The encoder sees the visible patches alone; a light decoder sees its features, and at the places of
the hidden patches a learned token.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.layers.image_encoder import (
    EncoderConfig,
    ImageEncoder,
    build_block,
    check_width,
    derive,
)
from training.layers.image_positions import SincosImagePositions, adapt_positions
from training.layers.linear import Linear
from training.layers.patches import CHANNELS, patch_grid

OUTPUT = "patches"
"""What the model gives: pixels of the patches of an image. A task says which it needs."""


@dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """Shape and parts of a masked autoencoder. The defaults are ViT-B/16's of the paper."""

    positions: Literal["learned", "sincos"] = "sincos"
    """How the encoder knows where a patch stands: learned, or sincos; the decoder has waves."""
    pooling: Literal["class_token", "mean"] = "mean"
    """What stands for the image: class_token, or the mean over the patches."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    decoder_d_model: int = 512
    """Width of the decoder, features."""
    decoder_num_layers: int = 8
    """Blocks of the decoder."""
    decoder_num_heads: int = 16
    """Heads of the decoder."""
    decoder_d_ff: int = 0
    """Width of the decoder's feed-forward, features; 0 = 4 decoder_d_model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        derive(self, "decoder_d_ff", 4 * self.decoder_d_model)
        for name in ("decoder_d_model", "decoder_num_layers", "decoder_num_heads", "decoder_d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_width("decoder_d_model", self.decoder_d_model, num_heads=self.decoder_num_heads)
        if self.decoder_d_model % 4:
            raise ValueError(f"decoder_d_model {self.decoder_d_model} is no multiple of 4")
        num_patches = math.prod(self.grid)
        if not 1 <= self.num_visible(num_patches) < num_patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} hides {num_patches - self.num_visible(num_patches)} "
                f"of {num_patches} patches; at least one is to be hidden and one visible"
            )

    def num_visible(self, num_patches: int) -> int:
        """Patches that the encoder sees."""
        return int(num_patches * (1 - self.mask_ratio))


def adapt(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Weights of another run for this model: learned positions stretch over its image size."""
    return adapt_positions(state, "encoder.positions.table.weight", config.grid)


class Model(nn.Module):
    """A masked autoencoder; its encoder has the names of a ViT's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config)
        self.decoder = Decoder(config)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of encoder and decoder."""
        return nn.ModuleList([*self.encoder.blocks, *self.decoder.blocks])

    def forward(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Predicted patches (B, P, C p p) of pixels (B, C, Y, X), of which the model sees some.

        `visible` (B, N) are the numbers of the visible patches; see `choose_visible`.
        """
        grid = patch_grid(pixels, self.config.patch_size)
        features = self.encoder(pixels, visible)
        predicted: Tensor = self.decoder(features, visible, grid)
        return predicted

    def choose_visible(self, noise: Tensor) -> Tensor:
        """The patches of least noise (B, P), as many as the encoder sees: (B, N)."""
        order = noise.argsort(dim=1, stable=True)
        return order[:, : self.config.num_visible(noise.shape[1])]

    def embed(self, pixels: Tensor) -> Tensor:
        """The image's vector (B, D); all patches are visible."""
        return self.encoder.pool(self.encoder(pixels))


class Decoder(nn.Module):
    """Features of some patches -> blocks over all -> pixels of all."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, std = config.decoder_d_model, config.decoder_d_model**-0.5
        self.num_in_front = int(config.class_token)
        self.embedding = Linear(config.d_model, width, bias=True, std=config.init_std)
        self.mask_token = MaskToken(width)
        self.positions = SincosImagePositions(config.grid, width, class_token=False)
        self.blocks = nn.ModuleList(
            build_block(
                width,
                num_heads=config.decoder_num_heads,
                d_ff=config.decoder_d_ff,
                norm_epsilon=config.norm_epsilon,
                stds=(std, std / math.sqrt(2 * config.decoder_num_layers)),
                join=nn.Identity,
            )
            for _ in range(config.decoder_num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.head = Linear(width, CHANNELS * config.patch_size**2, bias=True, std=std)

    def forward(self, features: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B, P, C p p) of features (B, 1 or 0 + N, D) at the places `visible` (B, N)."""
        x = self.embedding(features)
        front, seen = x.tensor_split([self.num_in_front], dim=1)
        patches, _ = self.positions(self.mask_token(seen, visible, math.prod(grid)), grid)
        x = torch.cat((front, patches), dim=1)  # (B, 1 or 0 + P, D)
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.head(self.norm(x)[:, self.num_in_front :])
        return predicted


class MaskToken(nn.Module):
    """A learned token at every place that is not visible."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_model) * 0.02)

    def forward(self, seen: Tensor, visible: Tensor, num_patches: int) -> Tensor:
        shape = (seen.shape[0], num_patches, seen.shape[2])
        hidden = self.weight.type_as(seen).expand(shape)  # (B, P, D)
        return hidden.scatter(1, visible[..., None].expand_as(seen), seen)  # (B, P, D)
