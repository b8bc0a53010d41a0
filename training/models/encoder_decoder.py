"""The encoder-decoder Transformer: T5 (Raffel et al. 2020), T5 1.1 and what lies between.

source -> embedding -> encoder blocks -> norm; tokens -> the same embedding -> decoder blocks, which
also attend to the encoder's features -> norm -> head -> logits of the next token.
Every parameter belongs to a submodule that is called, so that ZeRO-3 can gather it in module hooks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.layers.attention import Attention, Heads
from training.layers.block import Block
from training.layers.cross_attention import CrossAttention, CrossBlock, SourceCache
from training.layers.feed_forward import FeedForward, GatedFeedForward
from training.layers.linear import Embedding, Linear
from training.layers.positions import RotaryPositions
from training.layers.relative_positions import RelativeBias

OUTPUT = "target tokens"
"""What the model gives: logits of the next token of a target, given a source."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and parts of an encoder-decoder. The defaults are T5 1.1's of 248 M parameters.

    Norms are rmsnorm, and no layer has biases. Initial weights are T5's, by the width of what they
    multiply; only an untied head begins with 1 / sqrt(d_model), for logits of about 1.
    """

    vocab_size: int
    """Rows of embedding and head, tokens; the tokenizer's number, and the sentinels of the task."""
    d_model: int = 768
    """Width of the residual streams, features."""
    num_layers: int = 12
    """Blocks of the encoder."""
    num_decoder_layers: int = 0
    """Blocks of the decoder; 0 = num_layers."""
    num_heads: int = 12
    """Heads of queries, keys and values, in encoder and decoder."""
    head_dim: int = 0
    """Width of one head, features; 0 = d_model / num_heads."""
    d_ff: int = 0
    """Width of the feed-forward, features; 0 = 4 d_model; gated 8/3 d_model, up to a 64-fold."""
    positions: Literal["relative", "rotary"] = "relative"
    """How tokens know their distance: a learned number for each head and range of distances, added
    to the scores; or rotary, which needs no weights and leaves attention its fastest kernels.
    """
    num_buckets: int = 32
    """Ranges of distances of relative positions."""
    max_distance: int = 128
    """Distance from which on all are in the last bucket, positions."""
    activation: Literal["relu", "gelu", "geglu", "swiglu"] = "geglu"
    """Of the feed-forward: relu is T5's; geglu, gated by gelu's tanh approximation, is T5 1.1's."""
    tie_embeddings: bool = False
    """Embedding and head share their weights; features are then scaled by 1 / sqrt(d_model)."""
    dropout: float = 0.0
    """Share of embedding, attention and residual features dropped in training, 0 to 1."""
    norm_epsilon: float = 1e-6
    """Added to the mean square."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths, which run from 2 pi to 2 pi rope_theta positions."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._derive("num_decoder_layers", self.num_layers)
        if not self.head_dim and self.d_model % self.num_heads:
            sizes = f"d_model {self.d_model} is no multiple of num_heads {self.num_heads}"
            raise ValueError(f"{sizes}; change one of them or give head_dim")
        self._derive("head_dim", self.d_model // self.num_heads)
        gated_width = 64 * math.ceil(8 * self.d_model / (3 * 64))
        self._derive("d_ff", gated_width if self.is_gated else 4 * self.d_model)
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"positions rotary turns pairs, but head_dim {self.head_dim} is odd")
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"max_distance is {self.max_distance}; it must be above num_buckets / 2, "
                f"{self.num_buckets // 2}, since so many buckets hold one distance each"
            )

    def _check_ranges(self) -> None:
        least = dict.fromkeys(("num_decoder_layers", "head_dim", "d_ff"), 0)
        least |= dict.fromkeys(("vocab_size", "d_model", "num_layers", "num_heads"), 1)
        for name, bound in (least | {"num_buckets": 4}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        if self.num_buckets % 4:
            raise ValueError(f"num_buckets is {self.num_buckets}; it must be a multiple of 4")
        for name in ("norm_epsilon", "rope_theta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    def _derive(self, name: str, value: int) -> None:
        """Put the number in the place of a 0, so that the resolved config tells it."""
        object.__setattr__(self, name, getattr(self, name) or value)

    @property
    def is_gated(self) -> bool:
        """The feed-forward has a gate."""
        return self.activation in ("geglu", "swiglu")


class Model(nn.Module):
    """An encoder-decoder: `logits(decode(tokens, encode(source)))`, taken apart by a loss."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, std=1.0)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        std = config.d_model**-0.5
        self.head = Linear(config.d_model, config.vocab_size, bias=False, std=std)
        self.feature_scale = 1.0
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
            self.feature_scale = std

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of encoder and decoder."""
        return nn.ModuleList([*self.encoder.blocks, *self.decoder.blocks])

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of tokens (B, T), given a source (B, S)."""
        return self.logits(self.decode(tokens, self.encode(source)))

    def encode(self, source: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Features (B, S, D) of a source (B, S).

        With `documents` (B, S), ids, a token attends to its own document only.
        """
        features: Tensor = self.encoder(self.dropout(self.embedding(source)), documents)
        return features

    def decode(
        self,
        tokens: Tensor,
        encoded: Tensor,
        *,
        documents: Tensor | None = None,
        source_documents: Tensor | None = None,
        caches: Sequence[SourceCache] | None = None,
    ) -> Tensor:
        """Features (B, T, D) in front of the head, of tokens (B, T) and features (B, S, D).

        Args:
            tokens: (B, T).
            encoded: what `encode` gives.
            documents: (B, T) ids; a token then attends to its own document only, here and in the
                source, whose ids are `source_documents` (B, S).
            source_documents: see `documents`.
            caches: one per block of the decoder, to continue a target token by token.
        """
        x = self.dropout(self.embedding(tokens))  # (B, T, D)
        features: Tensor = self.decoder(x, encoded, documents, source_documents, caches)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D)."""
        logits: Tensor = self.head(features * self.feature_scale)
        return logits

    def new_caches(self) -> list[SourceCache]:
        """Empty caches for `decode`, one per block."""
        return [SourceCache() for _ in self.decoder.blocks]


def adapt(found: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Weights of another model for this one: a head that was tied goes on by itself, scaled."""
    weights = [found.get("head.weight"), found.get("embedding.weight")]
    head, embedding = (torch.empty(0) if one is None else one for one in weights)
    if config.tie_embeddings or not torch.equal(head, embedding):
        return found
    return found | {"head.weight": head * config.d_model**-0.5}


class Encoder(nn.Module):
    """Blocks that see the whole source."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.positions = _build_positions(config, causal=False)
        self.blocks = nn.ModuleList(
            Block(
                _build_attention(config, causal=False),
                _build_feed_forward(config),
                norm=partial(_build_norm, config),
                join=partial(nn.Dropout, config.dropout),
            )
            for _ in range(config.num_layers)
        )
        self.norm = _build_norm(config)

    def forward(self, x: Tensor, documents: Tensor | None) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)  # (S)
        visible = None if documents is None else _same(documents, documents)
        rotation, mask = self.positions(positions, positions, visible)
        for block in self.blocks:
            x = block(x, rotation, mask)
        normed: Tensor = self.norm(x)
        return normed


class Decoder(nn.Module):
    """Blocks that see the target as far as it goes, and the whole source."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.positions = _build_positions(config, causal=True)
        self.blocks = nn.ModuleList(
            CrossBlock(
                _build_attention(config, causal=True),
                CrossAttention(config.d_model, _heads(config), **_attention_settings(config)),
                _build_feed_forward(config),
                norm=partial(_build_norm, config),
                join=partial(nn.Dropout, config.dropout),
            )
            for _ in range(config.num_decoder_layers)
        )
        self.norm = _build_norm(config)

    def forward(
        self,
        x: Tensor,
        encoded: Tensor,
        documents: Tensor | None,
        source_documents: Tensor | None,
        caches: Sequence[SourceCache] | None,
    ) -> Tensor:
        past = caches[0].length if caches else 0
        keys = torch.arange(past + x.shape[1], device=x.device)  # (past + T)
        visible = source_mask = None
        if documents is not None and source_documents is not None:
            visible = _same(documents, documents).tril()  # (B, 1, T, T)
            source_mask = _same(documents, source_documents)
        rotation, mask = self.positions(keys[past:], keys, visible)
        for index, block in enumerate(self.blocks):
            cache = caches[index] if caches else None
            x = block(x, encoded, rotation, mask, source_mask, cache)
        normed: Tensor = self.norm(x)
        return normed


class Rotation(nn.Module):
    """Turns queries and keys; the mask stays as it is."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rotary = RotaryPositions(config.head_dim, theta=config.rope_theta)

    def forward(
        self, queries: Tensor, keys: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        _, rotation = self.rotary(keys, queries)
        return rotation, visible


def _same(queries: Tensor, keys: Tensor) -> Tensor:
    """True (B, 1, T, S) where two tokens are of one document."""
    return queries[:, None, :, None] == keys[:, None, None, :]


def _build_positions(config: Config, *, causal: bool) -> nn.Module:
    if config.positions == "rotary":
        return Rotation(config)
    return RelativeBias(
        config.num_heads,
        causal=causal,
        num_buckets=config.num_buckets,
        max_distance=config.max_distance,
        std=config.d_model**-0.5,
    )


def _heads(config: Config) -> Heads:
    return Heads(config.num_heads, config.num_heads, config.head_dim)


def _build_attention(config: Config, *, causal: bool) -> Attention:
    settings = _attention_settings(config)
    return Attention(config.d_model, _heads(config), causal=causal, **settings)


def _attention_settings(config: Config) -> dict[str, Any]:
    stds = (config.d_model**-0.5, (config.num_heads * config.head_dim) ** -0.5)
    return {"bias": False, "dropout": config.dropout, "stds": stds}


def _build_norm(config: Config) -> nn.Module:
    return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)


def _build_feed_forward(config: Config) -> nn.Module:
    stds = (config.d_model**-0.5, config.d_ff**-0.5)
    activation = {
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
        "geglu": nn.GELU(approximate="tanh"),
        "swiglu": nn.SiLU(),
    }[config.activation]
    kind = GatedFeedForward if config.is_gated else FeedForward
    return kind(config.d_model, config.d_ff, activation=activation, bias=False, stds=stds)
