"""Batch arithmetic: a table, a law, and the error."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.batch_size import Config, accumulation_steps


@pytest.mark.parametrize(
    ("global_batch_size", "micro_batch_size", "world_size", "accumulation"),
    [
        (1, 1, 1, 1),
        (12, 6, 2, 1),
        (12, 12, 1, 1),
        (12, 1, 1, 12),
        (12, 1, 12, 1),
        (512, 8, 16, 4),
        (480, 12, 8, 5),
    ],
)
def test_table(global_batch_size, micro_batch_size, world_size, accumulation):
    assert accumulation == accumulation_steps(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        world_size=world_size,
    )


sizes = st.integers(1, 60)


@given(sizes, sizes, sizes)
def test_either_the_factors_multiply_or_the_error_names_them(global_size, micro_size, world_size):
    arguments = {"micro_batch_size": micro_size, "world_size": world_size}
    try:
        steps = accumulation_steps(global_batch_size=global_size, **arguments)
    except ValueError as error:
        assert global_size % (micro_size * world_size)
        message = str(error)
        assert f"batch.global_batch_size={global_size} " in message
        assert f"batch.micro_batch_size={micro_size} x world size {world_size}" in message
        proposed = re.search(r"use a global batch of (.*?),", message)[1].split(" or ")
        assert all(
            accumulation_steps(global_batch_size=int(size), **arguments) for size in proposed
        )
        worlds = message.split("among: ")[1]
        for world in [] if worlds.startswith("none") else worlds.split(", "):
            assert accumulation_steps(
                global_batch_size=global_size, micro_batch_size=micro_size, world_size=int(world)
            )
    else:
        assert steps * micro_size * world_size == global_size


def test_a_batch_that_the_world_does_not_divide():
    with pytest.raises(ValueError) as caught:
        accumulation_steps(global_batch_size=12, micro_batch_size=2, world_size=5)
    assert str(caught.value) == (
        "batch.global_batch_size=12 is no multiple of batch.micro_batch_size=2 x world size 5 = 10;"
        " use a global batch of 10 or 20, or a world size among: 1, 2, 3, 6"
    )


def test_a_micro_batch_above_the_global_batch():
    with pytest.raises(ValueError, match=r"use a global batch of 8, or .* among: none"):
        accumulation_steps(global_batch_size=6, micro_batch_size=4, world_size=2)


@pytest.mark.parametrize("name", ["global_batch_size", "micro_batch_size"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
        Config(**{"global_batch_size": 4, "micro_batch_size": 2, name: 0})
