"""Millrace beside nanoGPT on the same machine: tokens/s of one process on nanoGPT's CPU recipe.

    python -m benchmarks.nanogpt --checkout PATH_OF_A_NANOGPT_CHECKOUT [--rounds 5] [--steps 200]

The checkout is yours, with `data/shakespeare_char` prepared; nothing of it is copied. Both programs
run alternately, as whole processes with the same number of threads, on Tiny Shakespeare: 4 layers,
4 heads, 128 wide, sequences of 64, batch 12, AdamW, fp32. Of each run the median time of a step
counts, start-up and evaluation left out.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parent.parent
TOKENS_PER_STEP = 12 * 64
NANOGPT_ARGUMENTS = (
    "--device=cpu --compile=False --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --dropout=0.0 --eval_iters=1 --eval_interval=1000000 --log_interval=1 "
    "--always_save_checkpoint=False --learning_rate=1e-3 --lr_decay_iters=2000"
).split()
MILLRACE_OVERRIDES = (
    "batch.micro_batch_size=12 engine.zero_stage=0 evaluation.every_steps=0 samples.every_steps=0 "
    "logging.every_steps=10"
).split()


def main() -> None:
    arguments = _arguments()
    dataset_dir = ROOT / "datasets/tiny_shakespeare"
    if not (dataset_dir / "manifest.json").exists():
        command = [sys.executable, "-m", "pipeline", "configs/pipeline/tiny_shakespeare.yaml"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    theirs, ours = [], []
    for _ in track(range(arguments.rounds), description="rounds of both"):
        theirs.append(_nanogpt(arguments.checkout, arguments))
        ours.append(_millrace(arguments))
    _print(theirs, ours, arguments)


def _nanogpt(checkout: Path, arguments: argparse.Namespace) -> float:
    """Tokens per second of nanoGPT's train.py."""
    with tempfile.TemporaryDirectory() as out_dir:
        command = [
            sys.executable,
            "train.py",
            "config/train_shakespeare_char.py",
            *NANOGPT_ARGUMENTS,
            f"--out_dir={out_dir}",
            f"--max_iters={arguments.steps}",
        ]
        output = _run(command, checkout, arguments.threads)
    times = [float(ms) for ms in re.findall(r"time ([\d.]+)ms", output)]
    return TOKENS_PER_STEP / (statistics.median(times[len(times) // 4 :]) / 1000)


def _millrace(arguments: argparse.Namespace) -> float:
    """Tokens per second of `python -m training`."""
    with tempfile.TemporaryDirectory() as run_dir:
        command = [
            sys.executable,
            "-m",
            "training",
            "configs/training/tiny_shakespeare.yaml",
            f"run_dir={run_dir}",
            f"num_steps={arguments.steps}",
            *MILLRACE_OVERRIDES,
        ]
        output = _run(command, ROOT, arguments.threads)
    speeds = [float(speed.replace(",", "")) for speed in re.findall(r"([\d,]+) tokens/s", output)]
    return statistics.median(speeds[len(speeds) // 4 :])


def _run(command: list[str], folder: Path, threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _print(theirs: list[float], ours: list[float], arguments: argparse.Namespace) -> None:
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    table = Table(title=f"tokens/s, one process, {arguments.threads} threads, medians of steps")
    for column in ("", "minimum", "median", "maximum"):
        table.add_column(column, justify="right")
    for name, values, form in (
        ("nanoGPT", theirs, ",.0f"),
        ("Millrace", ours, ",.0f"),
        ("ratio", ratios, ".2f"),
    ):
        cells = (min(values), statistics.median(values), max(values))
        table.add_row(name, *(format(cell, form) for cell in cells))
    Console().print(table)
    sys.stdout.write(json.dumps({"nanogpt": theirs, "millrace": ours}) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, required=True, help="folder of nanoGPT's train.py")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
