"""What is a spike: against numbers by hand, and against plain numpy over a random walk."""

import math

import numpy as np
import pytest

from training.spikes import Judge


def judge_of(values, **settings):
    judge = Judge(**{"window_steps": 8, "sigmas": 3.0} | settings)
    for value in values:
        judge.learn(value, 10 * value)
    return judge


def test_a_loss_far_above_those_before_is_a_spike():
    judge = judge_of([1.0, 3.0] * 4)  # mean 2, standard deviation of samples sqrt(8 / 7)
    limit = 2 + 3 * math.sqrt(8 / 7)
    assert judge.judge(limit - 1e-6, 20.0) is None
    found = judge.judge(limit + 1e-6, 20.0)
    assert found.kinds == ("loss_spike",)
    assert found.loss_limit == pytest.approx(limit)
    assert found.is_finite
    assert str(judge.judge(9.0, 99.0)) == (
        "loss 9 is a spike, above 5.207 and gradient norm 99 is a spike, above 52.07"
    )
    assert judge.judge(-1e9, 0.0) is None  # far below is no spike


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [
        (math.nan, 1.0, "loss nan is not finite"),
        (1.0, math.inf, "gradient norm inf is not finite"),
        (math.inf, math.nan, "loss inf is not finite and gradient norm nan is not finite"),
    ],
)
def test_numbers_that_are_not_finite(loss, norm, told):
    judge = judge_of([1.0] * 8)
    found = judge.judge(loss, norm)
    assert found.kinds == ("nonfinite",)
    assert not found.is_finite
    assert str(found) == told
    judge.learn(loss, norm)
    assert list(judge.losses) == [1.0] * 8


def test_half_of_the_window_is_only_looked_at():
    assert judge_of([1.0, 2.0, 1.0]).judge(1e9, 1e9) is None
    assert judge_of([1.0, 2.0, 1.0, 2.0]).judge(1e9, 15.0).kinds == ("loss_spike",)


def test_no_sigmas_no_spikes():
    assert judge_of([1.0, 2.0] * 4, sigmas=0.0).judge(1e9, 1e9) is None


def test_a_spike_does_not_hide_the_next_one():
    judge = judge_of([1.0, 3.0] * 4)
    for _ in range(2):
        found = judge.judge(1000.0, 20.0)
        assert found is not None
        judge.learn(1000.0, 20.0, found.loss_limit, found.grad_norm_limit)
    assert max(judge.losses) < 10


def test_a_level_that_stays_is_soon_the_usual_one():
    judge = Judge(window_steps=128, sigmas=6.0)
    generator = np.random.default_rng(0)
    for value in generator.normal(3.0, 0.1, 200).tolist():
        judge.learn(value, 1.0)
    spikes = 0
    for value in generator.normal(5.0, 0.1, 200).tolist():  # twenty deviations higher
        found = judge.judge(value, 1.0)
        spikes += found is not None
        limits = (found.loss_limit, found.grad_norm_limit) if found else ()
        judge.learn(value, 1.0, *limits)
    assert 3 < spikes < 30


def test_healthy_training_has_no_spikes():
    """A falling loss with noise, as of a small GPT: one false alarm in 2,000 steps at the most."""
    generator = np.random.default_rng(1)
    judge, found = Judge(window_steps=128, sigmas=6.0), 0
    for step in range(2000):
        loss = 2.0 + 8.0 / (1 + step / 50) + generator.normal(0, 0.05)
        norm = math.exp(generator.normal(0, 0.2))
        found += judge.judge(loss, norm) is not None
        judge.learn(loss, norm)
    assert found <= 1
