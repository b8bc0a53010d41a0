"""The learning rate of every step against numbers computed by hand, and nanoGPT's cosine."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import Config, learning_rate


@pytest.mark.parametrize(
    ("shape", "decay_steps", "ratio", "expected"),
    [
        # 8 steps, peak 12, warmup 2: rises by 12 / 3, peak at step 3, falls over 6 steps.
        ("cosine", 0, 0.0, [4, 8, 12, 6 + 3 * 3**0.5, 9, 6, 3, 6 - 3 * 3**0.5]),
        ("linear", 0, 0.5, [4, 8, 12, 11, 10, 9, 8, 7]),
        ("linear", 0, 0.0, [4, 8, 12, 10, 8, 6, 4, 2]),
        ("wsd", 3, 0.0, [4, 8, 12, 12, 12, 12, 8, 4]),
        ("wsd", 4, 0.5, [4, 8, 12, 12, 12, 10.5, 9, 7.5]),
        ("constant", 0, 0.1, [4, 8, 12, 12, 12, 12, 12, 12]),
    ],
)
def test_every_step(shape, decay_steps, ratio, expected):
    rates = [
        learning_rate(
            step,
            shape=shape,
            num_steps=8,
            peak_learning_rate=12.0,
            warmup_steps=2,
            decay_steps=decay_steps,
            min_learning_rate_ratio=ratio,
        )
        for step in range(1, 9)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)


# get_lr of nanoGPT at iterations 0, 50, 99, 100, 575, 1050, 1525 and 1999, with learning_rate 1e-3,
# min_lr 1e-4, warmup_iters 100, lr_decay_iters 2000; its iteration i is our step i + 1.
NANOGPT = [
    (0, 1e-3 / 101),
    (50, 1e-3 * 51 / 101),
    (99, 1e-3 * 100 / 101),
    (100, 1e-3),
    (575, 1e-4 + 9e-4 * (2 + 2**0.5) / 4),
    (1050, 5.5e-4),
    (1525, 1e-4 + 9e-4 * (2 - 2**0.5) / 4),
    (1999, 1e-4 + 9e-4 * math.sin(math.pi / 3800) ** 2),
]


@pytest.mark.parametrize(("iteration", "expected"), NANOGPT)
def test_nanogpts_cosine(iteration, expected):
    rate = learning_rate(
        iteration + 1,
        shape="cosine",
        num_steps=2000,
        peak_learning_rate=1e-3,
        warmup_steps=100,
        min_learning_rate_ratio=0.1,
    )
    assert rate == pytest.approx(expected, rel=1e-12)


@given(
    st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    st.integers(0, 50),
    st.integers(1, 50),
    st.integers(1, 100),
    st.floats(0, 1),
)
def test_rises_to_the_peak_then_never_rises_nor_passes_the_minimum(
    shape, warmup_steps, decay_steps, stable_steps, ratio
):
    decay_steps = decay_steps if shape == "wsd" else 0
    num_steps = warmup_steps + decay_steps + stable_steps
    Config(
        shape=shape,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        min_learning_rate_ratio=ratio,
    ).check(num_steps)
    rates = [
        learning_rate(
            step,
            shape=shape,
            num_steps=num_steps,
            peak_learning_rate=1.0,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            min_learning_rate_ratio=ratio,
        )
        for step in range(1, num_steps + 1)
    ]
    rise, fall = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert all(a < b for a, b in zip(rise, rise[1:], strict=False))
    assert rise[-1] == pytest.approx(1.0, rel=1e-12)
    assert all(a >= b for a, b in zip(fall, fall[1:], strict=False))
    assert min(fall) >= ratio * (1 - 1e-12)
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"min_learning_rate_ratio": 1.1}, "min_learning_rate_ratio is 1.1; it must be in 0 to 1"),
        ({"shape": "wsd"}, "shape wsd needs decay_steps of at least 1, found 0"),
        ({"decay_steps": 5}, "decay_steps is 5, but only shape wsd"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_a_schedule_longer_than_the_run_is_refused():
    config = Config(shape="wsd", warmup_steps=60, decay_steps=40)
    config.check(101)
    with pytest.raises(ValueError, match=r"60 \+ decay_steps 40 leave nothing of num_steps 100"):
        config.check(100)
