"""AdamW with explicit parameter groups.

The learning rate is 0 until the trainer sets it before each step, so an optimizer step that
DeepSpeed takes to allocate its states changes no weight.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu", "mps"})
"""Where torch.optim.AdamW has a fused kernel: one pass over memory, no temporary copies."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """AdamW."""

    peak_learning_rate: float = 6e-4
    """Highest learning rate of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay per step of the running mean of gradients and of their squares, each below 1."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.1
    """Share of a weight that a step takes away, times the learning rate."""
    decay_embeddings: bool = True
    """Embeddings decay too, and with them a tied head."""
    fused: bool = True
    """Use the fused kernel where the device has one."""

    def __post_init__(self) -> None:
        for name in ("peak_learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; two numbers of at least 0 and below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0")


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a model, with a learning rate of 0."""
    groups = parameter_groups(
        model, weight_decay=config.weight_decay, decay_embeddings=config.decay_embeddings
    )
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=0.0,
        betas=config.betas,
        eps=config.epsilon,
        fused=config.fused and devices <= FUSED_DEVICES,
    )


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not: norms, biases, and embeddings by choice.

    Each in the order of the model, tied ones once, frozen ones left out, no empty group.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a partitioned parameter looks flat; ds_shape remembers its true shape.
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        decays = is_matrix and (decay_embeddings or id(parameter) not in embeddings)
        (decayed if decays else kept).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
