"""The block that all our Transformers are built of."""

from collections.abc import Callable

from torch import Tensor, nn

from training.layers.attention import Attention, Cache


class Block(nn.Module):
    """Attention, then feed-forward; each reads a norm of the residual stream and adds to it."""

    def __init__(
        self,
        attention: Attention,
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
        self.feed_forward_norm = norm()
        self.feed_forward = feed_forward
        self.feed_forward_join = join()

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), rotation, mask, cache)
        x = x + self.attention_join(attended)
        forwarded: Tensor = self.feed_forward_join(self.feed_forward(self.feed_forward_norm(x)))
        return x + forwarded
