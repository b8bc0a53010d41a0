"""A model and its task as one module: what the engine runs forward.

The loss is computed inside, so that ZeRO-3 gathers the output weights where a chunked loss needs
them.
"""

from typing import Protocol

import torch
from torch import nn

MicroBatch = dict[str, torch.Tensor]
Metrics = dict[str, torch.Tensor]


class Task(Protocol):
    """What the trainer needs of a task; tasks own collate, loss and metrics."""

    def num_targets(self, batch: MicroBatch) -> int:
        """Number of terms that the loss sums over."""
        ...

    def loss(self, model: nn.Module, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
        """Sum of the loss over the targets, and sums of further metrics."""
        ...


class Objective(nn.Module):
    """forward: micro batch -> (sum of the loss over its targets, sums of metrics)."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
        return self.task.loss(self.model, batch)
