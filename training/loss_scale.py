"""The loss scale of fp16 across ZeRO stages: DeepSpeed's scaler and torch's, in the same words."""

from typing import Any

import torch


def read_loss_scale(scaler: Any) -> dict[str, float] | None:
    """The scale and the steps since its last change; nothing where nothing is scaled.

    DeepSpeed's scale doubles in the step behind `scale_window` good ones, torch's in the last.
    """
    if isinstance(scaler, torch.amp.GradScaler):
        return {"scale": scaler.get_scale(), "good_steps": scaler._get_growth_tracker()}
    if not hasattr(scaler, "last_overflow_iter"):  # a scale that never changes
        return None
    since_overflow = scaler.cur_iter - scaler.last_overflow_iter - 1
    good_steps = (since_overflow - 1) % scaler.scale_window + 1 if since_overflow else 0
    return {
        "scale": scaler.cur_scale,
        "good_steps": good_steps,
        "hysteresis": scaler.cur_hysteresis,
    }


def set_loss_scale(scaler: Any, saved: dict[str, float]) -> None:
    """Go on with a scale that any stage has written."""
    if isinstance(scaler, torch.amp.GradScaler):
        good_steps = min(int(saved["good_steps"]), scaler.get_growth_interval() - 1)
        state = {"scale": saved["scale"], "_growth_tracker": good_steps}
        scaler.load_state_dict(scaler.state_dict() | state)
        return
    scaler.cur_scale = saved["scale"]
    scaler.last_overflow_iter = scaler.cur_iter - 1 - int(saved["good_steps"])
    scaler.cur_hysteresis = saved.get("hysteresis", scaler.delayed_shift)
