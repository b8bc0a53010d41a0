"""Ranks from the environment, and collectives of a world of one; the engine's tests have two."""

import os
import socket

import pytest
import torch
import torch.distributed as dist

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


def test_a_rank_without_a_device(monkeypatch):
    for name, value in {"RANK": "10", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    distributed.check_device(3)
    told = r"rank 10, number 2 of \S+, has no device: the machine shows 2; start as many ranks"
    with pytest.raises(ValueError, match=told):
        distributed.check_device(2)


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**settings, "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        told = f"ranks did not meet at 127.0.0.1:{port}: .*; if another program has the port"
        with pytest.raises(OSError, match=told), distributed.meeting():
            dist.init_process_group("gloo")
