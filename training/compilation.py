"""torch.compile of a model's blocks, applied from outside: model code does not know of it."""

import torch
from torch import nn


def compile_blocks(blocks: nn.ModuleList, *, backend: str = "inductor") -> None:
    """Compile each block for itself, in place: fused kernels, at its first forward.

    Blocks of one shape share one compilation. Between blocks nothing is compiled, so hooks of
    DeepSpeed, loss and data stay as they are. On a CPU inductor needs a C++ compiler.
    """
    # Blocks differ in numbers such as the rate of stochastic depth, each of which is one more
    # compilation; behind torch's limit of 8 it would silently run the rest uncompiled.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)
