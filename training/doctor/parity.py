"""Whether every way to train gives the same losses: ZeRO stages, ranks, accumulation and others.

A tiny Transformer takes a few steps in fp32 by plain torch, and by the engine in each way, on one
rank and on all of this machine; one step more is refused in between, as behind a NaN. What
DeepSpeed, torch or NCCL do wrong shows here before it costs days: wrong gradients at stage 2
(DeepSpeed #7718), gradients that ranks did not sum (#8382) or that a skipped step leaves behind
(0.19.8, offloaded), an optimizer step with zero gradients at the start.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.doctor.finding import Finding

TOLERANCES = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3}
"""Of losses of about 4 nats beside fp32, by precision: in fp32 sums in another order differ by
1e-6, real defects by more than 1e-2; bf16 was off by 2e-3, fp16 by 5e-5 on a CPU."""

EMA_DECAY = 0.2
"""So low, that four steps reach it."""
CASES: dict[str, dict[str, Any]] = {
    "ZeRO stage 0": {"zero_stage": 0},
    "ZeRO stage 1": {"zero_stage": 1},
    "ZeRO stage 2": {"zero_stage": 2},
    "ZeRO stage 3": {"zero_stage": 3},
    "stage 1, accumulation 4": {"zero_stage": 1, "accumulation": 4},
    "stage 2, accumulation 4": {"zero_stage": 2, "accumulation": 4},
    "stage 3, accumulation 4": {"zero_stage": 3, "accumulation": 4},
    "stage 2, full recomputation": {"zero_stage": 2, "activation_checkpointing": "full"},
    "stage 3, full recomputation": {"zero_stage": 3, "activation_checkpointing": "full"},
    "stage 2, every 2nd block": {"zero_stage": 2, "activation_checkpointing": "every_n"},
    "stage 3, selective": {"zero_stage": 3, "activation_checkpointing": "selective"},
    "stage 2, offloaded activations": {"zero_stage": 2, "activation_checkpointing": "offload"},
    "stage 2, offloaded optimizer": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "stage 2, compiled blocks": {"zero_stage": 2, "compile": "blocks"},
    "stage 0, compiled model": {"zero_stage": 0, "compile": "model", "accumulation": 4},
    "stage 3, zero_init": {"zero_stage": 3, "zero_init": True},
    "stage 3, average of weights": {"zero_stage": 3, "ema_decay": EMA_DECAY},
    "stage 2, bf16": {"zero_stage": 2, "precision": "bf16"},
    "stage 2, bf16, offloaded optimizer": {
        "zero_stage": 2,
        "precision": "bf16",
        "offload_optimizer": "cpu",
    },
    "stage 0, fp16": {"zero_stage": 0, "precision": "fp16", "initial_loss_scale_power": 8},
    "stage 2, fp16": {"zero_stage": 2, "precision": "fp16", "initial_loss_scale_power": 8},
}
"""Settings of the engine by name, `accumulation` of micro batches, and `ema_decay`, with which the
loss of the averaged weights stands behind those of the steps. A loss scale of 2^16 would overflow
in the first steps and leave them out."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case on one world size."""

    losses: list[float]
    """Of the steps, nats; empty if it failed."""
    error: str = ""


def cases_of(device: str) -> tuple[str, ...]:
    """All that `cuda` or `cpu` computes: a CPU takes fp16 under the autocast of stage 0 alone."""
    return tuple(
        name
        for name, settings in CASES.items()
        if device == "cuda" or settings.get("precision") != "fp16" or not settings["zero_stage"]
    )


def check_parity(num_ranks: int, names: Sequence[str]) -> Iterator[Finding]:
    """Cases by name, on one rank and on `num_ranks`, beside plain torch."""
    rows = 4 * num_ranks  # so that each rank has four, to accumulate
    by_ranks = {ranks: _run(ranks, rows, names) for ranks in sorted({1, num_ranks})}
    reference = by_ranks[1]["reference"]
    if reference.error:
        yield Finding("fault", "plain torch", reference.error)
        return
    yield Finding("ok", "plain torch", f"losses {_list(reference.losses)}")
    for name in names:
        beside = by_ranks[1]["average"] if "ema_decay" in CASES[name] else reference
        yield judge(name, beside, {n: results[name] for n, results in by_ranks.items()})
    bandwidth = by_ranks[num_ranks].get("bandwidth")
    if num_ranks > 1 and bandwidth:
        text = bandwidth.error or f"{bandwidth.losses[0]:.2f} GB/s over {num_ranks} ranks, 64 MiB"
        yield Finding("fault" if bandwidth.error else "ok", "all-reduce", text)


def judge(name: str, reference: Result, results: dict[int, Result]) -> Finding:
    """One line of the table: the largest difference of a loss on each world size."""
    texts, verdict = [], "ok"
    precision = CASES.get(name, {}).get("precision", "fp32")
    for ranks, result in results.items():
        where = f"{ranks} rank{'s' if ranks > 1 else ''}"
        if result.error:
            verdict = "fault"
            texts.append(f"{where}: {result.error}")
            continue
        pairs = zip(result.losses, reference.losses, strict=True)
        differences = [abs(ours - plain) for ours, plain in pairs]
        difference = max(differences)
        if not all(each <= TOLERANCES[precision] for each in differences):  # NaN is not
            verdict = "fault"
            texts.append(f"{where}: losses {_list(result.losses)}, off by {difference:.1e}")
        else:
            texts.append(f"{where}: off by {difference:.1e}")
    if precision != "fp32":
        texts.append(f"up to {TOLERANCES[precision]:.0e} is the rounding of {precision}")
    return Finding(verdict, name, "; ".join(texts))  # type: ignore[arg-type]


def _run(num_ranks: int, rows: int, names: Sequence[str]) -> dict[str, Result]:
    """The results of processes of their own, so that a crash of one is a line here."""
    with tempfile.TemporaryDirectory() as folder:
        out, port = Path(folder) / "results.json", _free_port()
        words = [str(out), str(rows), *names]
        ranks = [_start(rank, num_ranks, port, words) for rank in range(num_ranks)]
        errors = _wait(ranks)
        if out.exists():
            tree = json.loads(out.read_text())
            return {name: Result(**row) for name, row in tree.items()}
        failed = Result([], f"{num_ranks} ranks ended without results: {errors}")
        return dict.fromkeys(("reference", "average", "bandwidth", *names), failed)


def _start(rank: int, num_ranks: int, port: int, words: list[str]) -> "subprocess.Popen[str]":
    launcher = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks))}
    return subprocess.Popen(
        [sys.executable, "-m", "training.doctor.parity_rank", *words],
        env=threads | os.environ | launcher,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(ranks: "list[subprocess.Popen[str]]") -> str:
    """The last line of the first that failed; the others would wait for it, and are ended."""
    try:
        while any(rank.poll() is None for rank in ranks) and not any(r.poll() for r in ranks):
            time.sleep(0.1)
    finally:
        for rank in ranks:
            if rank.poll() is None and any(other.poll() for other in ranks):
                rank.kill()
    outputs = [rank.communicate()[1].strip() for rank in ranks]
    failed = [text for rank, text in zip(ranks, outputs, strict=True) if rank.returncode]
    return failed[0].splitlines()[-1] if failed and failed[0] else ""


def _list(losses: list[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
