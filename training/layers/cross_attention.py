"""Attention to another sequence, and the block of a decoder that has it."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.layers.attention import Attention, Cache, Heads
from training.layers.linear import Linear, Stds


class SourceCache(Cache):
    """Keys and values of one block: of the positions seen, and of the source, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.source: tuple[Tensor, Tensor] | None = None


class CrossAttention(nn.Module):
    """Attention to all positions of a source, or to those that a mask (B, 1, T, S) leaves."""

    def __init__(
        self, d_model: int, heads: Heads, *, bias: bool, dropout: float, stds: Stds
    ) -> None:
        super().__init__()
        num_attended = heads.num_heads * heads.head_dim
        self.head_dim = heads.head_dim
        self.dropout = dropout
        self.query = Linear(d_model, num_attended, bias=bias, std=stds[0])
        shared = 2 * heads.num_kv_heads * heads.head_dim
        self.key_value = Linear(d_model, shared, bias=bias, std=stds[0])
        self.output = Linear(num_attended, d_model, bias=bias, std=stds[1])

    def forward(
        self, x: Tensor, source: Tensor, mask: Tensor | None, cache: SourceCache | None = None
    ) -> Tensor:
        """What features (B, T, D) take from those of a source (B, S, D)."""
        q = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, K)
        k, v = self._look_up(source, cache)
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        return output

    def _look_up(self, source: Tensor, cache: SourceCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S, K), computed once for a cache."""
        if cache is not None and cache.source is not None:
            return cache.source
        heads = self.key_value(source).unflatten(-1, (-1, self.head_dim))  # (B, S, 2 G, K)
        k, v = heads.transpose(1, 2).chunk(2, dim=1)  # (B, G, S, K), twice
        if cache is not None:
            cache.source = (k, v)
        return k, v


class CrossBlock(nn.Module):
    """Attention, cross-attention, then feed-forward; each reads a norm and adds to the stream."""

    def __init__(
        self,
        attention: Attention,
        cross_attention: CrossAttention,
        feed_forward: nn.Module,
        *,
        norm: Callable[[], nn.Module],
        join: Callable[[], nn.Module],
    ) -> None:
        """`norm` builds what stands before each part, `join` what its result goes through."""
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.attention_join = join()
        self.cross_norm = norm()
        self.cross_attention = cross_attention
        self.cross_join = join()
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward
        self.feed_forward_join = join()

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        cache: SourceCache | None = None,
    ) -> Tensor:
        x = x + self.attention_join(self.attention(self.attention_norm(x), rotation, mask, cache))
        crossed = self.cross_attention(self.cross_norm(x), source, source_mask, cache)
        x = x + self.cross_join(crossed)
        forwarded: Tensor = self.feed_forward_join(self.feed_forward(self.feed_forward_norm(x)))
        return x + forwarded
