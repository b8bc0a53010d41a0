"""torch.compile of a model's blocks and a task's loss, from outside: neither knows of it."""

from typing import Any

import torch
from torch import nn


def compile_blocks(blocks: nn.ModuleList, *, backend: str = "inductor") -> None:
    """Compile each block for itself, in place: fused kernels, at its first forward.

    Blocks of one shape share one compilation. Between blocks nothing is compiled, so hooks of
    DeepSpeed, head and data stay as they are. On a CPU inductor needs a C++ compiler.
    """
    # Blocks differ in numbers such as the rate of stochastic depth, each of which is one more
    # compilation; behind torch's limit of 8 it would silently run the rest uncompiled.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)


def compile_loss(task: Any, *, backend: str = "inductor") -> None:
    """Compile a task's loss of logits over a vocabulary, if it has one, at its first call.

    Torch's own kernels write the logits in fp32, their logarithms and two gradients of their size;
    fused ones read them once forward and once backward.
    """
    if hasattr(task, "token_loss"):
        task.token_loss = torch.compile(task.token_loss, backend=backend)
