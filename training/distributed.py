"""Ranks: the environment of the launcher, and the few collectives that are not DeepSpeed's.

Every reader of launcher variables is here. `deepspeed`, `torchrun` and a bare `python -m training`
all work.
"""

import ctypes
import os
import signal
import socket
import sys
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process among all of the run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process on its machine, and the index of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_rank_zero() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def stand_alone() -> None:
    """Without a launcher, be a world of one: set the variables that a launcher would."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(port))


def die_with_launcher() -> None:
    """Under a launcher on Linux, be killed when it is: torchrun's ranks are sessions of their own
    and would go on writing into a run folder that the next start of the run writes into too.
    """
    launched = {"TORCHELASTIC_RUN_ID", "CROSS_SIZE"} & os.environ.keys()  # torchrun's, deepspeed's
    if launched and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def leave() -> None:
    """End the process group in order; gloo's threads would else abort some exits of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor summed over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(value: Any) -> list[Any]:
    """The value of every rank, by rank, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]
