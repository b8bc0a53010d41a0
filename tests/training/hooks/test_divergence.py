"""Skipped steps are told, and too many in a row end the run."""

from dataclasses import dataclass

import pytest

from training.hooks.divergence import DivergenceHook


@dataclass
class Result:
    skipped: bool
    loss_scale: float


@pytest.fixture
def take(info_of):
    """Steps from 1 on, skipped where the text has an `x`."""

    def steps(hook, skips, *, loss_scale=1.0):
        for step, letter in enumerate(skips, 1):
            hook.on_step(info_of(step, Result(letter == "x", loss_scale)))

    return steps


def test_the_first_skip_in_a_row_is_told(take, capsys):
    take(DivergenceHook(max_skips_in_a_row=4), ".xx..xxx.x")
    assert capsys.readouterr().out.splitlines() == [
        f"warning: step {step} is skipped: its gradient norm is not finite" for step in (2, 6, 10)
    ]


def test_too_many_in_a_row_end_the_run(take):
    hook = DivergenceHook(max_skips_in_a_row=3)
    message = r"steps 6 to 8 were skipped.*not finite.*\(engine.max_skips_in_a_row=3\)"
    with pytest.raises(ValueError, match=message):
        take(hook, "xx.x.xxx")


def test_one_skip_ends_the_run_where_that_is_asked_for(take):
    with pytest.raises(ValueError, match="steps 2 to 2 were skipped"):
        take(DivergenceHook(max_skips_in_a_row=1), ".x")


def test_no_number_of_skips_ends_the_run_where_that_is_asked_for(take):
    take(DivergenceHook(max_skips_in_a_row=0), "x" * 100)


def test_fp16_looks_for_its_scale_in_silence(take, capsys):
    take(DivergenceHook(max_skips_in_a_row=2), "xxxxx", loss_scale=2.0)
    assert capsys.readouterr().out == ""


def test_fp16_at_its_least_scale_has_diverged(take):
    hook = DivergenceHook(max_skips_in_a_row=2)
    take(hook, "xxx", loss_scale=2.0)
    with pytest.raises(ValueError, match="steps 1 to 2 were skipped"):
        take(hook, "xx", loss_scale=1.0)
