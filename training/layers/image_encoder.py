"""The image encoder: what a ViT and a masked autoencoder share.

pixels -> patches (+ positions) -> class token in front -> blocks -> norm -> features of each.
Every parameter belongs to a submodule that is called, so that ZeRO-3 can gather it in module hooks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from training.layers.attention import Attention, Heads
from training.layers.block import Block
from training.layers.feed_forward import FeedForward
from training.layers.image_positions import LearnedImagePositions, SincosImagePositions
from training.layers.patches import PatchEmbedding, patch_grid
from training.layers.residual import build_join

VARIANTS = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
"""d_model, num_layers and num_heads: Dosovitskiy et al. 2020, table 1; Ti and S of DeiT."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape and parts of an image encoder."""

    variant: Literal["Ti", "S", "B", "L", "H"] = "B"
    """Sizes of the papers, for those that are 0 here."""
    image_size: int = 224
    """Side of the square images of training, pixels; others are taken too, positions stretch."""
    patch_size: int = 16
    """Side of a patch, pixels."""
    d_model: int = 0
    """Width of the residual stream, features; 0 = of the variant."""
    num_layers: int = 0
    """Blocks; 0 = of the variant."""
    num_heads: int = 0
    """Heads; 0 = of the variant."""
    d_ff: int = 0
    """Width of the feed-forward, features; 0 = 4 d_model."""
    class_token: bool = True
    """A learned token stands in front of the patches."""
    pooling: Literal["class_token", "mean"] = "class_token"
    """What stands for the image: the features of the class token, or the mean over the patches."""
    positions: Literal["learned", "sincos"] = "learned"
    """How the model knows where a patch stands: a learned table, or fixed 2-D waves."""
    layer_scale: float = 0.0
    """Initial factor of what joins the residual stream; 0 = without LayerScale."""
    stochastic_depth: float = 0.0
    """Probability to drop the last block for a sample in training; from 0 linear over blocks."""
    dropout: float = 0.0
    """Share of embedding and residual features dropped in training, 0 to 1."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped in training, 0 to 1."""
    qk_norm: bool = False
    """Queries and keys are normalised head by head (Dehghani et al. 2023)."""
    norm_epsilon: float = 1e-6
    """Added to the variance."""
    init_std: float = 0.0
    """Of the normal initial weights; residual projections take it over sqrt(2 num_layers); 0 =
    1 / sqrt(d_model)."""
    position_std: float = 0.02
    """Of the normal initial positions, of learned ones; a small model of small images learns faster
    with 0.2."""

    def __post_init__(self) -> None:
        for name, size in zip(
            ("d_model", "num_layers", "num_heads"), VARIANTS[self.variant], strict=True
        ):
            derive(self, name, size)
        derive(self, "d_ff", 4 * self.d_model)
        derive(self, "init_std", max(self.d_model, 1) ** -0.5)
        self._check_ranges()
        if self.image_size % self.patch_size:
            sizes = f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            raise ValueError(f"{sizes}; change one of them")
        check_width("d_model", self.d_model, num_heads=self.num_heads)
        if self.positions == "sincos" and self.d_model % 4:
            raise ValueError(f"positions sincos fills fours, but d_model is {self.d_model}")
        if self.pooling == "class_token" and not self.class_token:
            raise ValueError("pooling class_token needs class_token=true; or take pooling=mean")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training image."""
        return (self.image_size // self.patch_size,) * 2

    def _check_ranges(self) -> None:
        for name in ("image_size", "patch_size", "d_model", "num_layers", "num_heads", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("norm_epsilon", "init_std", "position_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.layer_scale < math.inf:
            raise ValueError(f"layer_scale is {self.layer_scale}; it must be at least 0 and finite")
        for name in ("stochastic_depth", "dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                found = getattr(self, name)
                raise ValueError(f"{name} is {found}; it must be at least 0 and below 1")


class ImageEncoder(nn.Module):
    """Features of the class token, if there is one, and of each patch."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchEmbedding(config.patch_size, config.d_model)
        self.positions = _build_positions(config)
        self.class_token = ClassToken(config.d_model) if config.class_token else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config, n) for n in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_epsilon)

    def forward(self, pixels: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features (B, T, D), the class token's first.

        Args:
            pixels: (B, C, Y, X), normalised.
            visible: (B, N) numbers of the patches that the model sees, without which it sees all.
        """
        grid = patch_grid(pixels, self.config.patch_size)
        x, class_position = self.positions(self.patches(pixels), grid)  # (B, P, D), (1 or 0, D)
        if visible is not None:
            x = x.take_along_dim(visible[..., None], dim=1)  # (B, N, D)
        if self.class_token is not None:
            x = self.class_token(x, class_position)  # (B, 1 + N, D)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features

    def pool(self, features: Tensor) -> Tensor:
        """The image's vector (B, D) of its features (B, T, D)."""
        if self.config.pooling == "class_token":
            return features[:, 0]
        return features[:, int(self.config.class_token) :].mean(dim=1)


class ClassToken(nn.Module):
    """A learned token in front of the others, at a position of its own."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        token = (self.weight + position).type_as(x).expand(x.shape[0], 1, -1)  # (B, 1, D)
        return torch.cat((token, x), dim=1)  # (B, 1 + T, D)


def build_block(
    d_model: int,
    *,
    num_heads: int,
    d_ff: int,
    attention_dropout: float = 0.0,
    qk_norm: bool = False,
    norm_epsilon: float,
    stds: tuple[float, float],
    join: Callable[[], nn.Module],
) -> Block:
    """A block of attention to all positions and a feed-forward with the exact GELU."""
    head_dim = d_model // num_heads
    head_norm = partial(nn.LayerNorm, head_dim, eps=norm_epsilon) if qk_norm else nn.Identity
    attention = Attention(
        d_model,
        Heads(num_heads, num_heads, head_dim),
        causal=False,
        bias=True,
        dropout=attention_dropout,
        stds=stds,
        head_norm=head_norm,
    )
    feed_forward = FeedForward(d_model, d_ff, activation=nn.GELU(), bias=True, stds=stds)
    norm = partial(nn.LayerNorm, d_model, eps=norm_epsilon)
    return Block(attention, feed_forward, norm=norm, join=join)


def check_width(name: str, d_model: int, *, num_heads: int) -> None:
    """Refuse a width that heads do not divide."""
    if d_model % num_heads:
        raise ValueError(f"{name} {d_model} is no multiple of {num_heads} heads")


def derive(config: object, name: str, value: float) -> None:
    """Put the number in the place of a 0, so that the resolved config tells it."""
    object.__setattr__(config, name, getattr(config, name) or value)


def _build_block(config: EncoderConfig, number: int) -> Block:
    share = number / max(config.num_layers - 1, 1)
    return build_block(
        config.d_model,
        num_heads=config.num_heads,
        d_ff=config.d_ff,
        attention_dropout=config.attention_dropout,
        qk_norm=config.qk_norm,
        norm_epsilon=config.norm_epsilon,
        stds=(config.init_std, config.init_std / math.sqrt(2 * config.num_layers)),
        join=partial(
            build_join,
            config.d_model,
            layer_scale=config.layer_scale,
            dropout=config.dropout,
            stochastic_depth=config.stochastic_depth * share,
        ),
    )


def _build_positions(config: EncoderConfig) -> nn.Module:
    if config.positions == "sincos":
        return SincosImagePositions(config.grid, config.d_model, class_token=config.class_token)
    return LearnedImagePositions(
        config.grid,
        config.d_model,
        class_token=config.class_token,
        std=config.position_std,
    )
