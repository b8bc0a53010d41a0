"""Activation checkpointing of a model's blocks, applied from outside: model code does not know of
it.
"""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint


def apply_activation_checkpointing(blocks: nn.ModuleList, mode: str) -> None:
    """Wrap the forward of every block in place.

    `none` keeps all activations; `full` keeps the input of each block (2 bytes x d_model per token
    and block in bf16) and computes the block again in the backward pass, with the same random
    numbers.
    """
    if mode == "none":
        return
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
