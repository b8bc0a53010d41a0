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
    layer_decay: float = 1.0
    """Factor of the learning rate from a block to the one before it; 1 is one rate for all. Tuning
    weights of a masked autoencoder takes 0.65 to 0.75.
    """
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
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1, one "
                "rate for all layers"
            )


def build_optimizer(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a model, with a learning rate of 0."""
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        decay_embeddings=config.decay_embeddings,
        layer_decay=config.layer_decay,
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
    model: nn.Module,
    *,
    weight_decay: float,
    decay_embeddings: bool = True,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameters by their `weight_decay` and by the factor `lr_scale` of their learning rate.

    Norms, biases, and embeddings by choice do not decay. Each group is in the order of the model,
    tied parameters once, frozen ones left out, no group empty.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    scales = learning_rate_scales(model, layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a partitioned parameter looks flat; ds_shape remembers its true shape.
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
        decays = is_matrix and (decay_embeddings or id(parameter) not in embeddings)
        groups.setdefault((scales[name], not decays), []).append(parameter)
    return [
        {
            "params": groups[scale, is_kept],
            "weight_decay": 0.0 if is_kept else weight_decay,
            "lr_scale": scale,
        }
        for scale, is_kept in sorted(groups)
    ]


def learning_rate_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Factor of the learning rate of each parameter: `layer_decay` to the layers above its own.

    What a model has before its `blocks`, embedding and positions, is layer 0, block i is layer
    i + 1, and what comes behind them, norm and head, is the top, whose factor is 1.
    """
    named = dict(model.named_parameters())
    if layer_decay == 1:
        return dict.fromkeys(named, 1.0)
    blocks: Any = model.blocks
    layers = {id(one): n for n, block in enumerate(blocks, 1) for one in block.parameters()}
    scales: dict[str, float] = {}
    outside = 0
    for name, parameter in named.items():
        layer = layers.get(id(parameter), outside)
        outside = outside if layer == 0 else len(blocks) + 1  # behind the first block is the top
        scales[name] = layer_decay ** (len(blocks) + 1 - layer)
    return scales
