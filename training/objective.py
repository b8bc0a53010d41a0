"""A model and its task as one module: what the engine runs forward.

The loss is computed inside, so that ZeRO-3 gathers the output weights where a chunked loss needs
them.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

MicroBatch = dict[str, torch.Tensor]
Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Summary:
    """An evaluation as its task tells it."""

    line: str
    """The numbers that matter, for the console."""
    scalars: dict[str, float]
    """Numbers by name; `loss` is among them."""
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    """8-bit colours (Y, X, 3) by name, for TensorBoard."""


class Task(Protocol):
    """What the trainer needs of a task; tasks own collate, loss and metrics."""

    def num_targets(self, batch: MicroBatch) -> int:
        """Number of terms that the loss sums over."""
        ...

    def loss(self, model: nn.Module, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
        """Sum of the loss over the targets, and sums of further metrics, of any shape."""
        ...

    def summarise(self, means: Metrics) -> Summary:
        """An evaluation from the sums of `loss` and metrics, each over the number of targets."""
        ...


class Objective(nn.Module):
    """forward: micro batch -> (sum of the loss over its targets, sums of metrics)."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
        return self.task.loss(self.model, batch)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(count_elements(parameter) for parameter in model.parameters())


def largest_share(model: nn.Module, world_size: int) -> int:
    """Elements of its largest parameter on one of so many ranks that divide each."""
    return max(-(-count_elements(parameter) // world_size) for parameter in model.parameters())


def count_elements(parameter: nn.Parameter) -> int:
    """Of a parameter, also of one that ZeRO stage 3 has partitioned."""
    elements: int = getattr(parameter, "ds_numel", parameter.numel())
    return elements
