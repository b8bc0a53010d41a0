"""Random numbers go on where a checkpoint found them; ranks that it does not know begin anew."""

import random

import numpy as np
import torch

from training.random_state import random_path, random_state, restore_random_state


def draw():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_random_numbers_go_on_where_they_were(tmp_path):
    torch.save(random_state(), random_path(tmp_path, 0))
    expected = draw()
    assert draw() != expected
    restore_random_state(tmp_path, seed=1, step=2)
    assert draw() == expected


def test_a_rank_that_wrote_no_state_is_seeded_by_run_step_and_rank(tmp_path, monkeypatch):
    torch.save(random_state(), random_path(tmp_path, 0))  # of rank 0
    seen = set()
    for seed, step, rank in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3)]:
        monkeypatch.setenv("RANK", str(rank))
        restore_random_state(tmp_path, seed=seed, step=step)
        numbers = draw()
        draw()
        restore_random_state(tmp_path, seed=seed, step=step)
        assert draw() == numbers
        seen.add(tuple(numbers))
    assert len(seen) == 4
