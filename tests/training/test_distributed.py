"""Ranks from the environment, and collectives of a world of one; the engine's tests have two."""

import os

import pytest
import torch

from training import distributed

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def test_without_a_launcher():
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.is_rank_zero()
    distributed.barrier()
    tensor = torch.tensor([3.0])
    assert distributed.sum_over_ranks(tensor) is tensor
    assert distributed.gather("a") == ["a"]
    assert distributed.broadcast("a") == "a"


def test_under_a_launcher(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (5, 8, 1)
    assert not distributed.is_rank_zero()


def test_standing_alone():
    distributed.stand_alone()
    assert [os.environ[name] for name in LAUNCHER[:4]] == ["0", "1", "0", "127.0.0.1"]
    assert 1024 <= int(os.environ["MASTER_PORT"]) < 65536


def test_a_launcher_is_left_in_charge(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    distributed.stand_alone()
    assert "MASTER_PORT" not in os.environ
