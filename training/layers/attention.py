"""Attention with shared keys and values, rotary positions, masks and a cache, by torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.layers.document_attention import attend_inside_documents
from training.layers.linear import Linear, Stds


class Heads(NamedTuple):
    """How attention divides its features."""

    num_heads: int
    """Of queries."""
    num_kv_heads: int
    """Of keys and values, each shared by num_heads / num_kv_heads query heads."""
    head_dim: int
    """Width of one head, features."""


Attend = Callable[..., Tensor]
"""(q, k, v, mask, *, causal) -> values (B, H, T, K)."""


class Attention(nn.Module):
    """Attention to all positions, or, where `causal`, to none behind a position's own.

    With a mask (B, 1 or H, T, T), which must be causal itself, the mask alone counts: booleans,
    or numbers that are added to the scores; or boundaries of documents (N + 1), see
    `attend_inside_documents`.
    """

    def __init__(
        self,
        d_model: int,
        heads: Heads,
        *,
        causal: bool,
        bias: bool,
        dropout: float,
        stds: Stds,
        head_norm: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        """`head_norm` builds what each query and each key (..., K) goes through."""
        super().__init__()
        self.groups = (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
        self.head_dim = heads.head_dim
        self.causal = causal
        self.dropout = dropout
        width = sum(self.groups) * heads.head_dim
        self.query_key_value = Linear(d_model, width, bias=bias, std=stds[0])
        self.query_norm, self.key_norm = head_norm(), head_norm()
        self.captured: list[Tensor] | None = None
        """Weights of each forward, where someone wishes to see them; see `capture_attention`."""
        self.attend: Attend = self.attend_alone
        """What computes attention; ranks that share sequences put an exchange around it."""
        self.output = Linear(heads.num_heads * heads.head_dim, d_model, bias=bias, std=stds[1])

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        cache: "Cache | None" = None,
    ) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2G, K)
        q, k, v = heads.transpose(1, 2).split(self.groups, dim=1)  # (B, H, T, K), 2 x (B, G, T, K)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, G, past + T, K)
        # One new token behind a cache sees all that is there.
        is_causal = self.causal and mask is None and q.shape[2] == k.shape[2]
        if self.captured is not None:
            self.captured.append(attention_weights(q, k, mask=mask, is_causal=is_causal))
        # Where ranks share sequences, those that are generated or looked at are whole on each.
        is_whole = cache is not None or self.captured is not None
        attend = self.attend_alone if is_whole else self.attend
        attended = attend(q, k, v, mask, causal=is_causal)  # (B, H, T, K)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        return output

    def attend_alone(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool
    ) -> Tensor:
        """Values (B, H, T, K), weighted for queries (B, H, T, K), of this process alone."""
        if mask is not None and mask.ndim == 1:
            return attend_inside_documents(q, k, v, mask)
        if mask is not None and q.is_cuda and q.shape[1] != k.shape[1]:
            # Torch has no fused kernel for a mask and shared heads at once: it would compute all
            # T x T weights of every head in memory.
            k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
            enable_gqa=q.shape[1] != k.shape[1],
        )


class Cache:
    """Keys and values of one block for the positions seen: first a prompt, then token by token."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Positions seen."""
        return 0 if self._kept is None else self._kept[0].shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values with the new ones (B, G, T, K) at the end."""
        if self._kept is not None:
            assert k.shape[2] == 1, "behind a prompt the cache grows token by token"
            k = torch.cat((self._kept[0], k), dim=2)  # (B, G, past + 1, K)
            v = torch.cat((self._kept[1], v), dim=2)  # (B, G, past + 1, K)
        self._kept = (k, v)
        return k, v


@contextmanager
def capture_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the attention weights (B, H, T, T) of every layer, in the order of computation.

    The list is filled when the context is left. Values of a forward inside stay as they are; the
    weights are computed beside them, which takes memory for T x T numbers a head.
    """
    captured: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    for layer in layers:
        layer.captured = []
    try:
        yield captured
    finally:
        for layer in layers:
            captured += layer.captured or []
            layer.captured = None


def attention_weights(q: Tensor, k: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """How much each query (B, H, T, K) takes from each of the keys (B, G, S, K): (B, H, T, S)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, K)
    scores = (q.float() @ k.float().transpose(2, 3)) * q.shape[3] ** -0.5  # (B, H, T, S)
    if is_causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        hides = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if hides else scores + mask
    weights: Tensor = scores.softmax(dim=-1)
    return weights


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (i, i + K/2) of (B, H, T, K) by angles, given as their cosines and sines."""
    cos, sin = rotation.unbind()
    a, b = x.chunk(2, dim=-1)  # 2 x (B, H, T, K/2)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, K)
    return turned.type_as(x)
