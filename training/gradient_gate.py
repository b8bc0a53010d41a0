"""A gate before the optimizer: it sees the gradient norm of a step, and may refuse the step.

DeepSpeed has one way to leave a step out, that of a norm which is not finite: it drops the
gradients and touches neither weights nor moments. So it is shown an infinite norm for a step that
is refused, at the place where it computes its own: none is computed twice, and no step waits for
the device once more.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

LARGEST = math.sqrt(torch.finfo(torch.float32).max)
"""Norm whose square is finite in fp32."""
Admits = Callable[[float], bool]
"""Whether a step with this gradient norm may be taken; every rank asks, and all get one answer."""


class GradientGate:
    """Stands in the optimizer of an engine of ZeRO stage 1 to 3; at stage 0 the engine asks it."""

    def __init__(self, optimizer: Any, *, zero_stage: int) -> None:
        self._optimizer = optimizer
        self._admits: Admits | None = None
        self.refused: float | None = None
        """The norm of the last step, if that was refused."""
        if getattr(optimizer, "cpu_offload", False):
            reset = optimizer.reset_cpu_buffers
            optimizer.reset_cpu_buffers = lambda: self._drop_offloaded(reset)
        if zero_stage == 3:
            norms = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._pass_groups(norms())
        elif hasattr(optimizer, "scaled_global_norm"):
            norm = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: self.pass_norm(norm())
        elif zero_stage > 0:  # BF16_Optimizer, which calls a function of its module
            step = optimizer.step
            optimizer.step = lambda: self._inside(sys.modules[type(optimizer).__module__], step)

    @contextmanager
    def asking(self, admits: Admits) -> Iterator[None]:
        """Inside, the optimizer takes its step only if that is admitted.

        The loss scale of fp16 changes behind the step. DeepSpeed 0.19.8 changes it first: where it
        doubles, gradients are divided by twice what they were multiplied by.
        """
        self._admits, self.refused = admits, None
        scaler = getattr(self._optimizer, "loss_scaler", None)
        overflows: list[bool] = []
        if scaler is not None:
            scaler.update_scale = overflows.append
        try:
            yield
        finally:
            self._admits = None
            if scaler is not None:
                del scaler.update_scale
                for overflow in overflows if self.refused is None else ():  # a refusal is none
                    scaler.update_scale(overflow)

    def pass_norm(self, norm: torch.Tensor) -> torch.Tensor:
        """The norm as it came, or an infinite one if the step is refused."""
        scaler = getattr(self._optimizer, "loss_scaler", None)
        value, scale = float(norm), scaler.loss_scale if scaler else 1.0
        # What is not finite changes nothing anyway; some helpers of DeepSpeed write it as -1.
        if self._admits is None or not 0 <= value < LARGEST or self._admits(value / scale):
            return norm
        self.refused = value / scale
        return torch.full_like(norm, math.inf)

    def _pass_groups(self, norms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Stage 3, which combines the norms of groups.

        It sums squares in fp64, stages 1 and 2 in fp32, where norms above 1.8e19 are not finite:
        all leave the same steps out. What is not finite comes as -1, whose square would count.
        """
        norms = [
            torch.where(has_finite_square(each) & (each >= 0), each, math.inf) for each in norms
        ]
        self.pass_norm(torch.linalg.vector_norm(torch.stack(norms)))  # (groups)
        refused = self.refused is not None
        return [torch.full_like(each, math.inf) for each in norms] if refused else norms

    def _drop_offloaded(self, reset: Callable[[], None]) -> None:
        """Stages 1 and 2 behind a step. Of one that they leave out DeepSpeed 0.19.8 keeps the sums
        of gradients that it offloads, where these are wider than weights, and adds the next to it.
        """
        reset()
        sums = self._optimizer.averaged_gradients
        sums.update(dict.fromkeys(sums))

    def _inside(self, module: Any, step: Callable[[], None]) -> None:
        norm = module.get_global_norm_of_tensors
        module.get_global_norm_of_tensors = lambda *args, **settings: self.pass_norm(
            norm(*args, **settings)
        )
        try:
            step()
        finally:
            module.get_global_norm_of_tensors = norm


def has_finite_square(norm: torch.Tensor) -> torch.Tensor:
    """Whether the norm is finite as DeepSpeed sums it, in fp32."""
    return norm.float().square().isfinite()
