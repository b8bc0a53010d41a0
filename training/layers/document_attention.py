"""Attention inside documents that lie one after another: by a mask, or by where they begin."""

import inspect
from typing import Any

import torch
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn

    _SETTINGS = inspect.signature(varlen_attn).parameters
except ImportError:  # of an older torch
    _SETTINGS = {}  # type: ignore[assignment]

HAS_KERNEL = "window_size" in _SETTINGS
"""Whether this torch has FlashAttention for sequences of different lengths, causal by a window."""
_SHARED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _SETTINGS else {}
"""Torch 2.11 takes shared heads unasked, 2.13 wants to be told."""


def document_mask(documents: Tensor) -> Tensor:
    """True (B, 1, T, T) where a token (row) sees another: not behind it, of the same document."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


def kernel_takes(x: Tensor, *, head_dim: int, dropout: float) -> bool:
    """Whether attention over features x (B, T, D) can go by boundaries: half precision, no dropout.

    The kernel reads no pairs of two documents. A mask costs B x T x T numbers in each layer, and
    its kernel computes all pairs: a Llama of 1.1 billion trained at 0.82 of the speed.
    """
    if not (HAS_KERNEL and x.is_cuda) or dropout or head_dim % 8 or head_dim > 256:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    is_half = dtype in (torch.bfloat16, torch.float16)
    return is_half and torch.cuda.get_device_capability(x.device) >= (8, 0)


def flat_boundaries(begins: Tensor, *, length: int) -> Tensor:
    """Boundaries (B N + 1) in all B x T tokens of documents that begin in rows at (B, N)."""
    rows = torch.arange(len(begins) + 1, dtype=begins.dtype, device=begins.device)
    ends = length * rows  # (B + 1)
    return torch.cat(((ends[:-1, None] + begins).flatten(), ends[-1:]))  # (B N + 1)


def attend_inside_documents(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor) -> Tensor:
    """Values (B, H, T, K) for queries (B, H, T, K), keys and values (B, G, T, K), causally.

    `boundaries` (N + 1) are int32: where each document begins in all B x T tokens, then B x T;
    a repeated one is that of a document without tokens.
    """
    length = q.shape[2]
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))  # (B T, H or G, K)
    attended = varlen_attn(
        q, k, v, boundaries, boundaries, length, length, window_size=(-1, 0), **_SHARED
    )  # (B T, H, K)
    assert isinstance(attended, Tensor)
    return attended.view(-1, length, *q.shape[1:]).transpose(1, 2)  # (B, H, T, K)
