"""What the engine tells of an optimizer step."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did; tensors stay on the device until someone reads them."""

    loss: torch.Tensor
    """Mean loss over the targets of the global batch, nats per target, fp32 scalar."""
    num_targets: torch.Tensor
    """Targets of the global batch, int64 scalar."""
    grad_norm: torch.Tensor | float
    """Global L2 norm before clipping; infinite if it, summed in fp32, is not finite."""
    skipped: bool
    """The optimizer did not step and changed nothing: the norm is not finite, or was refused."""
    loss_scale: float
    """Of fp16, by which this step's loss was multiplied: an overflow lowers that of the next step,
    and good steps raise it. 1 otherwise.
    """
    wants_stop: bool = False
    """Some rank wishes that the run stops behind this step."""
