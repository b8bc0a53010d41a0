"""torch.compile of a model's blocks and a task's loss, or of both as one, from outside: neither
knows of it.
"""

from typing import Any

import torch
from torch import nn

from training.objective import Objective


def compile_objective(objective: Objective, mode: str, *, backend: str = "inductor") -> None:
    """Compile in place what `engine.compile` says, at its first forward; `deepcompile` is the
    engine's own. On a CPU inductor needs a C++ compiler.
    """
    if mode == "blocks":
        compile_blocks(objective.model.blocks, backend=backend)  # type: ignore[arg-type]
        compile_loss(objective.task, backend=backend)
    elif mode == "model":
        # Of one forward and one backward a GPU replays one CUDA graph each.
        overheads = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        objective.compile(backend=backend, **overheads)


def allocate_gradients(model: nn.Module) -> None:
    """Give each weight a gradient of 0 for the micro batches of a step to add to.

    Else that of the first would lie in the memory of its CUDA graph, and the second would overwrite
    it; torch 2.11 does not notice (pytorch issue 96693).
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)


def compile_blocks(blocks: nn.ModuleList, *, backend: str = "inductor") -> None:
    """Each for itself: blocks of one shape share one compilation.

    Between blocks nothing is compiled, so hooks of DeepSpeed, head and data stay as they are.
    """
    # Blocks differ in numbers such as the rate of stochastic depth, each of which is one more
    # compilation; behind torch's limit of 8 it would silently run the rest uncompiled.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)


def compile_loss(task: Any, *, backend: str = "inductor") -> None:
    """A task's loss of logits over a vocabulary, if it has one.

    Torch's own kernels write the logits in fp32, their logarithms and two gradients of their size;
    fused ones read them once forward and once backward.
    """
    if hasattr(task, "token_loss"):
        task.token_loss = torch.compile(task.token_loss, backend=backend)
