"""Ranks: the environment of the launcher, and the few collectives that are not DeepSpeed's.

Every reader of launcher variables is here. `deepspeed`, `torchrun` and a bare `python -m training`
all work.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

STARTED, STOP = "MILLRACE_STARTED", "MILLRACE_STOP"
"""What our launcher tells its ranks: seconds since 1970, and a reason."""


def rank() -> int:
    """This process among all of the run."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of the run on this machine; 1 where the launcher does not tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process on its machine, and the index of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_groups(size: int, option: str) -> None:
    """Refuse groups of neighbouring ranks that the ranks of the run do not make up.

    Raises:
        ValueError: with the sizes that fit.
    """
    ranks = world_size()
    if ranks % size:
        fitting = [n for n in range(1, ranks + 1) if ranks % n == 0]
        raise ValueError(
            f"{option}={size} does not divide the world size {ranks}; "
            f"use one of {', '.join(map(str, fitting))}"
        )


def check_device(num_devices: int) -> None:
    """Refuse a rank without a device of its own.

    Raises:
        ValueError: with how many the machine shows.
    """
    if local_rank() >= num_devices:
        raise ValueError(
            f"rank {rank()}, number {local_rank()} of {socket.gethostname()}, has no device: the "
            f"machine shows {num_devices}; start as many ranks as it has devices"
        )


@contextmanager
def meeting() -> Iterator[None]:
    """What ranks meet in.

    Raises:
        OSError: the port is taken, or others do not come.
    """
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise OSError(
            f"ranks did not meet at {where}: {str(error).splitlines()[0]}; if another program has "
            "the port choose a free one: --master_port of deepspeed, launch.port of ours"
        ) from None


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


def hand_to_ranks(*, stop: str = "") -> None:
    """As a launcher of ranks that may start again: when the run was started, and why it stops."""
    os.environ.setdefault(STARTED, repr(time.time()))
    # torch 2.13 would let ranks of a restart find the addresses of those before in its store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if stop:
        os.environ[STOP] = stop


def started() -> float:
    """When the run was started, by our launcher or by this process: seconds since 1970."""
    return float(os.environ.get(STARTED) or time.time())


def stop_before_start() -> str:
    """Why the run stops, if it was told so before this process began; else empty."""
    return os.environ.get(STOP, "")


def store_holder() -> str:
    """Whose end is that of the store in which ranks met."""
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return "the launcher" if of_launcher else "rank 0"


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
