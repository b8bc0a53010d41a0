"""Relative positions as T5 has them: a learned number for each head and each range of distances."""

import math

import torch
from torch import Tensor, nn

from training.layers.linear import Embedding


class RelativeBias(nn.Module):
    """What is added to the scores of attention, by how far a key stands from its query.

    Near distances have a bucket each, far ones share buckets that widen by a constant factor, and
    all beyond `max_distance` the last one (Raffel et al. 2020, section 2.1).
    """

    def __init__(
        self, num_heads: int, *, causal: bool, num_buckets: int, max_distance: int, std: float
    ) -> None:
        """Where `causal`, no bucket is for keys behind their query."""
        super().__init__()
        self.causal = causal
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.table = Embedding(num_buckets, num_heads, std=std)

    def forward(
        self, queries: Tensor, keys: Tensor, visible: Tensor | None = None
    ) -> tuple[None, Tensor]:
        """No rotation, and what is added for queries and keys at the positions (T) and (S).

        It is (1 or B, H, T, S), minus infinity where `visible` (B, 1, T, S) is false or, without
        it and where `causal`, a key is behind its query.
        """
        if visible is None and self.causal:
            visible = keys <= queries[:, None]  # (T, S)
        distances = keys - queries[:, None]  # (T, S)
        bias: Tensor = self.table(self._buckets(distances)).permute(2, 0, 1)[None]  # (1, H, T, S)
        return None, bias if visible is None else bias.masked_fill(~visible, -torch.inf)

    def _buckets(self, distances: Tensor) -> Tensor:
        """Numbers of rows (T, S): half of them for keys behind their query, where it sees them."""
        if self.causal:
            return self._widening((-distances).clamp(min=0), self.num_buckets)
        num_buckets = self.num_buckets // 2
        return (distances > 0) * num_buckets + self._widening(distances.abs(), num_buckets)

    def _widening(self, distances: Tensor, num_buckets: int) -> Tensor:
        """Buckets of distances of 0 and more; the first half of them hold one distance each."""
        single = num_buckets // 2
        widths = (distances.clamp(min=1).float() / single).log() / math.log(
            self.max_distance / single
        )
        wide = single + (widths * (num_buckets - single)).long()
        return torch.where(distances < single, distances, wide.clamp(max=num_buckets - 1))
