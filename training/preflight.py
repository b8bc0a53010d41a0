"""Before step 1: whether all ranks run the same thing, and what the network between nodes carries.

A node with other code, versions or data trains on without an error, and wrongly; one with another
clock stops at another time; a slow cable makes every step slow.
"""

import hashlib
import importlib.metadata
import platform
import secrets
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import training
from training import distributed
from training.console import say

PACKAGES = ("torch", "deepspeed", "numpy", "tokenizers", "pillow", "simplejpeg")
"""Whose versions decide numbers."""
SLOW = 0.5
"""A pair of nodes below this part of the median is told."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `preflight`: what is looked at before the first step of several ranks."""

    clock_seconds: float = 10.0
    """Clocks of nodes may differ by so much; 0 does not look."""
    bandwidth_mib: int = 32
    """Each rank exchanges so much with a rank of every other node, to find slow ones; 0 does not.
    """

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("clock_seconds", "bandwidth_mib"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")


def check_nodes(config: Config, run_dir: Path, fingerprint: str, tree: Mapping[str, Any]) -> None:
    """Compare all ranks with rank 0; measure the network where there is one. Every rank calls it.

    `tree` is the config of the run, which is compared, too.

    Raises:
        ValueError: on every rank, naming each host that differs, and in what.
    """
    if distributed.world_size() == 1:
        return
    hosts = distributed.gather(socket.gethostname())
    facts = distributed.gather(find_facts(fingerprint) | find_keys(tree))
    distributed.barrier()  # so that all look at their clocks at once
    clocks = distributed.gather(time.time())
    seen = distributed.gather(_sees_folder(run_dir))
    faults = [*compare(hosts, facts), *compare_clocks(hosts, clocks, config.clock_seconds)]
    faults += [
        f"{host} does not see what {hosts[0]} writes into {run_dir}"
        for host, is_seen in zip(hosts, seen, strict=True)
        if not is_seen
    ]
    if faults:
        raise ValueError(f"nodes differ: {'; '.join(dict.fromkeys(faults))}")
    nodes = group_by_node(distributed.gather(distributed.local_rank()))
    if len(nodes) > 1 and config.bandwidth_mib:
        _tell(nodes, hosts, _measure(nodes, config.bandwidth_mib * 2**20))


def find_facts(fingerprint: str) -> dict[str, str]:
    """What has to be the same on all nodes."""
    root = Path(training.__file__).parent.parent
    code = hash_code([root / name for name in ("configs", "pipeline", "training")])
    facts = {"dataset": fingerprint[:16], "code of Millrace": code}
    facts["Python"] = platform.python_version()
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def find_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a config, by name; folders may lie elsewhere on each node."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= find_keys(value, f"{prefix}{name}.")
        elif not name.endswith("_dir"):
            found[f"config key {prefix}{name}"] = str(value)
    return found


def hash_code(packages: Sequence[Path]) -> str:
    """A hash of the names and contents of the packages' Python files."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{path.relative_to(package.parent)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compare(hosts: Sequence[str], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """How hosts differ from the first one."""
    return [
        f"{name} of {host} is {found.get(name, 'absent')}, of {hosts[0]} {value}"
        for host, found in zip(hosts, facts, strict=True)
        for name, value in facts[0].items()
        if found.get(name) != value
    ]


def compare_clocks(hosts: Sequence[str], clocks: Sequence[float], limit: float) -> list[str]:
    """Whose clock is not that of the first host."""
    return [
        f"the clock of {host} is {abs(clock - clocks[0]):.0f} s "
        f"{'ahead of' if clock > clocks[0] else 'behind'} that of {hosts[0]}"
        for host, clock in zip(hosts, clocks, strict=True)
        if limit and abs(clock - clocks[0]) > limit
    ]


def group_by_node(local_ranks: Sequence[int]) -> list[list[int]]:
    """Ranks of each node, which begins at local rank 0; launchers count ranks node by node."""
    nodes: list[list[int]] = []
    for rank, local_rank in enumerate(local_ranks):
        if local_rank == 0 or not nodes:
            nodes.append([])
        nodes[-1].append(rank)
    return nodes


def rounds(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Every pair of nodes once, in rounds in which each node has one partner: the circle method."""
    ring = list(range(num_nodes + num_nodes % 2))
    found = []
    for _ in ring[1:]:
        halves = zip(ring, reversed(ring[len(ring) // 2 :]), strict=False)
        pairs = [(min(pair), max(pair)) for pair in halves]
        found.append([pair for pair in pairs if pair[1] < num_nodes])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def _sees_folder(run_dir: Path) -> bool:
    """Whether this rank sees what rank 0 has just written there."""
    name = distributed.broadcast(f".node-{secrets.token_hex(8)}")
    if distributed.is_rank_zero():
        (run_dir / name).write_text("")
    distributed.barrier()
    seen: bool = (run_dir / name).exists()
    distributed.barrier()
    if distributed.is_rank_zero():
        (run_dir / name).unlink()
    return seen


def _measure(nodes: list[list[int]], num_bytes: int) -> dict[tuple[int, int], float]:
    """Bytes per second of each pair of nodes, one way, all their ranks at once.

    Each rank sends as much as in an all-reduce of so many bytes over two.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    ours, theirs = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    rates: dict[tuple[int, int], float] = {}
    for pairs in rounds(len(nodes)):
        partner = _partner(nodes, pairs)
        seconds = 0.0
        for _ in range(2):  # the first one connects
            distributed.barrier()
            seconds = _exchange(ours, theirs, partner) if partner >= 0 else 0.0
        spent = distributed.gather(seconds)
        for pair in pairs:
            times = [spent[rank] for rank in nodes[pair[0]] if spent[rank]]
            rates[pair] = len(times) * num_bytes / max(times)
    return rates


def _partner(nodes: list[list[int]], pairs: list[tuple[int, int]]) -> int:
    """The rank that this one exchanges with, -1 if none: that of its place on the other node."""
    rank = distributed.rank()
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            if rank in nodes[one]:
                place = nodes[one].index(rank)
                return nodes[other][place] if place < len(nodes[other]) else -1
    return -1


def _exchange(ours: torch.Tensor, theirs: torch.Tensor, partner: int) -> float:
    started = time.perf_counter()
    operations = [dist.P2POp(dist.isend, ours, partner), dist.P2POp(dist.irecv, theirs, partner)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    if ours.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _tell(nodes: list[list[int]], hosts: list[str], rates: dict[tuple[int, int], float]) -> None:
    """A line on the network, and a warning for each pair that is slow beside the others."""
    names = {pair: " and ".join(hosts[nodes[node][0]] for node in pair) for pair in rates}
    middle = statistics.median(rates.values())
    slowest, least = min(rates.items(), key=lambda row: row[1])
    say(
        f"{len(nodes)} nodes with the same code, versions and dataset; between two of them "
        f"{_rate(middle)} (median of {len(rates)}), slowest {names[slowest]} {_rate(least)}"
    )
    for pair, rate in rates.items():
        if rate < SLOW * middle:
            say(f"warning: {names[pair]} exchange {_rate(rate)}, others {_rate(middle)}")


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 2**30:.2f} GiB/s"
