"""Sequence parallelism: a group of ranks shares each sequence, which is too long for one of them.

Every rank computes on its own positions. In front of attention the ranks exchange, so that each has
all positions of its share of the heads, and behind it they exchange back (DeepSpeed-Ulysses, Jacobs
et al. 2023, section 3). Weights know nothing of it: for ZeRO these are ranks like any other.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training import distributed
from training.layers.attention import Attend, Attention


def share_sequences(model: nn.Module, size: int) -> None:
    """Let neighbouring ranks, `size` each, share the sequences of a model, in place.

    Raises:
        ValueError: the model has no attention, or its heads cannot be shared.
    """
    groups = [
        dist.new_group(list(range(first, first + size)))
        for first in range(0, distributed.world_size(), size)
    ]
    group = groups[distributed.rank() // size]
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = _shared(module.attend, group, size, num_heads=module.groups[0])


def share_batch(
    collate: Callable[[Any], dict[str, Tensor]],
    share: Callable[..., dict[str, Tensor]],
    size: int,
) -> Callable[[Any], dict[str, Tensor]]:
    """A collate function that gives this rank's positions alone, by the `share` of a task."""
    index = distributed.rank() % size
    return lambda samples: share(collate(samples), index=index, size=size)


def _shared(attend: Attend, group: Any, size: int, *, num_heads: int) -> Attend:
    if num_heads % size:
        raise ValueError(
            f"engine.sequence_parallel_size={size} does not divide the {num_heads} heads of the "
            "model, which its ranks share"
        )

    def shared(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        if k.shape[1] % size:  # too few to share: each query head gets its own
            k, v = (each.repeat_interleave(num_heads // k.shape[1], dim=1) for each in (k, v))
        q, k, v = (_exchange(each, group, size, 1, 2) for each in (q, k, v))  # (B, H / size, T, K)
        attended = attend(q, k, v, mask, causal=causal)  # (B, H / size, T, K)
        return _exchange(attended, group, size, 2, 1)  # (B, H, T / size, K)

    return shared


def _exchange(x: Tensor, group: Any, size: int, divided: int, joined: int) -> Tensor:
    """Give each rank of the group its part of one dimension, and join what comes in another."""
    exchanged: Tensor = _Exchange.apply(x, group, size, divided, joined)  # type: ignore[no-untyped-call]
    return exchanged


class _Exchange(torch.autograd.Function):
    """All-to-all; its derivative is the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, size: int, divided: int, joined: int) -> Tensor:
        ctx.settings = (group, size, joined, divided)
        parts = torch.stack(x.chunk(size, dim=divided))  # (size, ...)
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return torch.cat(received.unbind(), dim=joined)  # as x, divided and joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(gradients[0], *ctx.settings), None, None, None, None
