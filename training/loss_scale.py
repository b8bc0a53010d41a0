"""The loss scale of fp16 across ZeRO stages: DeepSpeed's scaler and torch's, in the same words."""

from typing import Any

import torch


def read_loss_scale(scaler: Any) -> dict[str, float] | None:
    """The scale and the steps since the last overflow; nothing where nothing is scaled."""
    if isinstance(scaler, torch.amp.GradScaler):
        return {"scale": scaler.get_scale(), "good_steps": scaler._get_growth_tracker()}
    if not hasattr(scaler, "last_overflow_iter"):  # a scale that never changes
        return None
    good_steps = (scaler.cur_iter - scaler.last_overflow_iter - 1) % scaler.scale_window
    return {
        "scale": scaler.cur_scale,
        "good_steps": good_steps,
        "hysteresis": scaler.cur_hysteresis,
    }


def set_loss_scale(scaler: Any, saved: dict[str, float]) -> None:
    """Go on with a scale that any stage has written."""
    if isinstance(scaler, torch.amp.GradScaler):
        state = {"scale": saved["scale"], "_growth_tracker": int(saved["good_steps"])}
        scaler.load_state_dict(scaler.state_dict() | state)
        return
    scaler.cur_scale = saved["scale"]
    scaler.last_overflow_iter = scaler.cur_iter - 1 - int(saved["good_steps"])
    scaler.cur_hysteresis = saved.get("hysteresis", scaler.delayed_shift)
