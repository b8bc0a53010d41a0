"""The loss scale of fp16 goes from DeepSpeed's scaler to torch's and back."""

import pytest
import torch
from deepspeed.runtime.fp16 import loss_scaler
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from training.loss_scale import read_loss_scale, set_loss_scale

pytestmark = pytest.mark.slow  # the import of deepspeed takes seconds


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """DeepSpeed's scaler asks for the rank when it tells of an overflow."""
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)


def of_torch():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    scaler.scale(torch.ones(()))
    return scaler


def of_deepspeed():
    return DynamicLossScaler(
        init_scale=2.0**10,
        scale_window=7,
        min_scale=1,
        delayed_shift=2,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )


def take(scaler, overflows):
    """The scale behind each step."""
    scales = []
    for is_over in overflows:
        if isinstance(scaler, DynamicLossScaler):
            scaler.update_scale(is_over)
            scales.append(scaler.cur_scale)
        else:
            found = {torch.device("cpu"): torch.tensor(float(is_over))}
            scaler._per_optimizer_states[0]["found_inf_per_device"] = found
            scaler.update()
            scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("build", [of_torch, of_deepspeed])
@pytest.mark.parametrize("before", range(20))
def test_a_scaler_goes_on_with_what_another_of_its_kind_has_written(build, before):
    """It halves, then doubles, at the same steps, wherever it was saved."""
    scaler, other = build(), build()
    take(scaler, [False, True, True, *[False] * before])
    set_loss_scale(other, read_loss_scale(scaler))
    following = [False] * 9 + [True] * 2
    scales = take(scaler, following)
    assert take(other, following) == scales
    assert len(set(scales)) > 1


@pytest.mark.parametrize("before", [0, 7, 14])
def test_a_scale_that_doubles_in_the_next_step_does_so_for_torch_too(before):
    scaler, other = of_deepspeed(), of_torch()
    take(scaler, [False] * before)
    set_loss_scale(other, read_loss_scale(scaler))
    assert (take(other, [False])[0] > scaler.cur_scale) == (before > 0)


@pytest.mark.parametrize(("first", "second"), [(of_torch, of_deepspeed), (of_deepspeed, of_torch)])
def test_from_one_kind_to_the_other(first, second):
    scaler, other = first(), second()
    take(scaler, [True, True, False, False, False])
    saved = read_loss_scale(scaler)
    set_loss_scale(other, saved)
    moved = read_loss_scale(other)
    assert saved["scale"] < 2.0**10
    assert saved["good_steps"] == 3
    assert {name: moved[name] for name in ("scale", "good_steps")} == {
        name: saved[name] for name in ("scale", "good_steps")
    }


def test_nothing_is_scaled():
    assert read_loss_scale(None) is None
    assert read_loss_scale(LossScaler(1.0)) is None
