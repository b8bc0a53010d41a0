"""A run that is killed and resumed beside the same run unbroken, on English novels.

    python -m benchmarks.kill_resume PATH_OF_ENGLISH_NOVELS [--kills 2] [--steps 200]

Builds the novels with a BPE of 32,000 tokens, then trains the Llama-shaped model of
`configs/training/llama_10m.yaml` on two CPU ranks with ZeRO-2 twice: unbroken, and with SIGKILL to
all processes at random steps, each time continued by the same command. Prints the validation
perplexity of both and how many of the steps have bitwise the same loss.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dataset_dir = work / "novels"
        _build(arguments.novels, dataset_dir)
        overrides = [f"data.dataset_dir={dataset_dir}", f"num_steps={arguments.steps}"]
        _say("unbroken run")
        _start(work / "unbroken", overrides).wait()
        _kill_and_resume(work / "broken", overrides, arguments)
        _print(work / "unbroken", work / "broken")


def _build(novels: Path, dataset_dir: Path) -> None:
    _say("building the dataset")
    config = "configs/pipeline/english_novels.yaml"
    command = [sys.executable, "-m", "pipeline", config]
    command += [f"corpus.path=[{novels.absolute()}]", f"dataset_dir={dataset_dir}"]
    subprocess.run(command, cwd=ROOT, check=True)


def _kill_and_resume(run_dir: Path, overrides: list[str], arguments: argparse.Namespace) -> None:
    """Run to the end, with a SIGKILL behind each of some random steps."""
    steps = sorted(
        random.Random(arguments.seed).sample(range(20, arguments.steps), arguments.kills)
    )
    for step in steps:
        process = _start(run_dir, overrides)
        while process.poll() is None and _last_step(run_dir) < step:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _say(f"killed behind step {_last_step(run_dir)}")
    _start(run_dir, overrides).wait()


def _start(run_dir: Path, overrides: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "training", "configs/training/llama_10m.yaml"]
    command += [f"run_dir={run_dir}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)


def _rows(run_dir: Path, name: str) -> list[dict[str, Any]]:
    path = run_dir / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _last_step(run_dir: Path) -> int:
    return max((row["step"] for row in _rows(run_dir, "metrics.jsonl")), default=0)


def _print(unbroken: Path, broken: Path) -> None:
    table = Table(title="validation perplexity")
    for column in ("step", "unbroken", "killed and resumed"):
        table.add_column(column, justify="right")
    pairs = zip(_rows(unbroken, "evaluation.jsonl"), _rows(broken, "evaluation.jsonl"), strict=True)
    for ours, theirs in pairs:
        assert ours["step"] == theirs["step"]
        cells = (f"{ours['perplexity']:.4f}", f"{theirs['perplexity']:.4f}")
        table.add_row(str(ours["step"]), *cells)
    Console().print(table)
    losses = [[row["loss"] for row in _rows(run, "metrics.jsonl")] for run in (unbroken, broken)]
    equal = sum(a == b for a, b in zip(*losses, strict=True))
    _say(f"{equal} of {len(losses[0])} steps have bitwise the same loss")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("novels", type=Path, help="folder of .txt files")
    parser.add_argument("--kills", type=int, default=2, help="SIGKILLs of the broken run")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the steps to kill at")
    return parser.parse_args()


if __name__ == "__main__":
    main()
