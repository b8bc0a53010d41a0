"""The decoder Transformer: GPT-2, Llama and what lies between, chosen part by part in `Config`.

tokens -> embedding (+ positions) -> blocks of attention and feed-forward -> norm -> head -> logits.
Every parameter belongs to a submodule that is called, so that ZeRO-3 can gather it in module hooks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from training.layers.attention import Attention, Cache, Heads
from training.layers.block import Block
from training.layers.document_attention import document_mask, flat_boundaries, kernel_takes
from training.layers.feed_forward import FeedForward, GatedFeedForward
from training.layers.linear import Embedding, Linear, Stds
from training.layers.positions import RotaryPositions, position_angles

OUTPUT = "tokens"
"""What the model gives: logits of the next token at every position. A task says which it needs."""

CUT = ("num_heads", "num_kv_heads", "d_ff")
"""Of what ranks can hold equal shares: engine.tensor_parallel_size must divide each of them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shape and parts of a decoder Transformer. The defaults are GPT-2's of 124 M parameters."""

    vocab_size: int
    """Rows of embedding and head, tokens; the tokenizer's number or more."""
    d_model: int = 768
    """Width of the residual stream, features."""
    num_layers: int = 12
    """Blocks."""
    num_heads: int = 12
    """Query heads."""
    num_kv_heads: int = 0
    """Key and value heads, each shared by num_heads / num_kv_heads query heads; 0 = num_heads."""
    head_dim: int = 0
    """Width of one head, features; 0 = d_model / num_heads."""
    d_ff: int = 0
    """Width of the feed-forward, features; 0 = 4 d_model; swiglu 8/3 d_model, up to a 64-fold."""
    max_positions: int = 1024
    """Longest sequence, positions; learned positions have a row for each."""
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    """How the model knows where a token stands."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation in front of attention, feed-forward and head."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    """Of the feed-forward; gelu is exact, gelu_tanh the approximation that GPT-2 uses."""
    tie_embeddings: bool = True
    """Embedding and head share their weights."""
    bias: bool = True
    """Linear layers and layernorm have biases; the head never has one."""
    dropout: float = 0.0
    """Share of embedding, attention and residual features dropped in training, 0 to 1."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths, which run from 2 pi to 2 pi rope_theta positions."""
    init_std: float = 0.02
    """Of the normal initial weights; residual projections take it over sqrt(2 num_layers)."""

    def __post_init__(self) -> None:
        self._check_ranges()
        self._derive("num_kv_heads", self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}"
            )
        if not self.head_dim and self.d_model % self.num_heads:
            sizes = f"d_model {self.d_model} is no multiple of num_heads {self.num_heads}"
            raise ValueError(f"{sizes}; change one of them or give head_dim")
        self._derive("head_dim", self.d_model // self.num_heads)
        gated_width = 64 * math.ceil(8 * self.d_model / (3 * 64))
        self._derive("d_ff", gated_width if self.activation == "swiglu" else 4 * self.d_model)
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"positions rotary turns pairs, but head_dim {self.head_dim} is odd")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"positions sinusoidal fills pairs, but d_model {self.d_model} is odd")

    def _check_ranges(self) -> None:
        least = dict.fromkeys(("num_kv_heads", "head_dim", "d_ff"), 0)
        least |= dict.fromkeys(("vocab_size", "d_model", "num_layers", "num_heads"), 1)
        for name, bound in (least | {"max_positions": 1}).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        for name in ("norm_epsilon", "rope_theta", "init_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    def _derive(self, name: str, value: int) -> None:
        """Put the number in the place of a 0, so that the resolved config tells it."""
        object.__setattr__(self, name, getattr(self, name) or value)


def num_parameters(config: Config) -> int:
    """Parameters of the model, tied ones once; no memory is touched."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Model(config).parameters())


class Model(nn.Module):
    """A decoder Transformer: `logits(features(tokens))`, two steps that a loss takes apart."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model, std=config.init_std)
        self.positions = _build_positions(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.num_layers))
        self.norm = _build_norm(config)
        self.head = Linear(config.d_model, config.vocab_size, bias=False, std=config.init_std)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of tokens (B, T)."""
        return self.logits(self.features(tokens, positions=positions, documents=documents))

    def features(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        document_begins: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Features (B, T, D) in front of the head.

        Args:
            tokens: (B, T).
            positions: (B, T), where they do not run from 0; they restart at document boundaries.
            documents: (B, T) ids; a token then attends to its own document only.
            document_begins: (B, N) positions at which the same documents begin, filled with T, for
                a kernel that goes by them, where there is one.
            caches: one per block, to continue a sequence token by token; see `Cache`.
        """
        past = caches[0].length if caches else 0
        self._check_length(past + tokens.shape[1])
        if positions is None:
            positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)  # (T)
        x, rotation = self.positions(self.embedding(tokens), positions)  # (B, T, D)
        mask = None if documents is None else self._mask(x, documents, document_begins)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, mask, caches[index] if caches else None)
        normed: Tensor = self.norm(x)
        return normed

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D)."""
        logits: Tensor = self.head(features)
        return logits

    def new_caches(self) -> list[Cache]:
        """Empty caches for `features`, one per block."""
        return [Cache() for _ in self.blocks]

    def _mask(self, x: Tensor, documents: Tensor, begins: Tensor | None) -> Tensor:
        """Where documents begin, if that is known and there is a kernel for it; else a mask."""
        dropout = self.config.dropout if self.training else 0.0
        if begins is None or not kernel_takes(x, head_dim=self.config.head_dim, dropout=dropout):
            return document_mask(documents)
        return flat_boundaries(begins, length=documents.shape[1])

    def _check_length(self, length: int) -> None:
        if length > self.config.max_positions:
            limit = f"max_positions {self.config.max_positions}"
            raise ValueError(f"a sequence of {length} tokens is longer than the model's {limit}")


class LearnedPositions(nn.Module):
    """A learned vector for each position, added to the embedding."""

    def __init__(self, max_positions: int, d_model: int, *, std: float) -> None:
        super().__init__()
        self.table = Embedding(max_positions, d_model, std=std)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        return x + self.table(positions), None


class SinusoidalPositions(nn.Module):
    """Sines in the first half of the features, cosines in the second, added to the embedding.

    The original scales embeddings up by sqrt(d_model) instead; here the waves come down to the size
    of the embedding, `std` per feature, which a sine of amplitude sqrt(2) std has.
    """

    def __init__(self, *, std: float) -> None:
        super().__init__()
        self.amplitude = math.sqrt(2) * std

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        angles = position_angles(positions, x.shape[-1], theta=10_000.0)
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)  # (T, D) or (B, T, D)
        return x + (self.amplitude * waves).type_as(x), None


def _build_positions(config: Config) -> nn.Module:
    if config.positions == "learned":
        return LearnedPositions(config.max_positions, config.d_model, std=config.init_std)
    if config.positions == "sinusoidal":
        return SinusoidalPositions(std=config.init_std)
    return RotaryPositions(config.head_dim, theta=config.rope_theta)


def _build_block(config: Config) -> Block:
    stds = (config.init_std, config.init_std / math.sqrt(2 * config.num_layers))
    attention = Attention(
        config.d_model,
        Heads(config.num_heads, config.num_kv_heads, config.head_dim),
        causal=True,
        bias=config.bias,
        dropout=config.dropout,
        stds=stds,
    )
    return Block(
        attention,
        _build_feed_forward(config, stds),
        norm=partial(_build_norm, config),
        join=partial(nn.Dropout, config.dropout),
    )


def _build_norm(config: Config) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.norm_epsilon, bias=config.bias)
    return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)


def _build_feed_forward(config: Config, stds: Stds) -> nn.Module:
    sizes = (config.d_model, config.d_ff)
    if config.activation == "swiglu":
        return GatedFeedForward(*sizes, activation=nn.SiLU(), bias=config.bias, stds=stds)
    gelu = nn.GELU(approximate="none" if config.activation == "gelu" else "tanh")
    return FeedForward(*sizes, activation=gelu, bias=config.bias, stds=stds)
