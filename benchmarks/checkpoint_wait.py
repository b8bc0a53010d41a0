"""Seconds that training waits for a checkpoint, written at once and in the background.

    torchrun --nproc_per_node 2 -m benchmarks.checkpoint_wait FOLDER

A decoder under ZeRO stage 2 in bf16 writes checkpoints into FOLDER in turn. In the background
training waits for the copy of its state, for the question after each step whether all ranks have
written, and for the publication; the first copy allocates its memory.
"""

import argparse
import time
from pathlib import Path

import torch

from training import distributed
from training import engine as engines
from training.checkpoint import RunState, remove_old
from training.console import say
from training.deepspeed_config import Config
from training.host_memory import HostMemory
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.saving import GIB, Saving
from training.tasks import causal_lm

VOCABULARY, LENGTH = 8192, 64


def main() -> None:
    arguments = _parser().parse_args()
    engines.initialize_distributed()
    engine = _build_engine(arguments)
    _take_step(engine)  # AdamW allocates its moments
    memory = HostMemory()
    say("| checkpoint | training waits, s | until published, s | size, GiB |")
    say("| --- | --: | --: | --: |")
    for number in range(1, 2 * arguments.rounds + 1):
        in_background = number % 2 == 0
        started = time.perf_counter()
        state = RunState(
            step=number,
            samples_seen=0,
            skipped_steps=0,
            world_size=distributed.world_size(),
            zero_stage=2,
            data_order="",
        )
        used = memory if in_background else None
        saving = Saving(arguments.folder, state, engine.take_files, "", memory=used)
        waited = time.perf_counter() - started
        waited += _train_until_written(engine, saving) if in_background else 0.0
        asked = time.perf_counter()
        path = saving.finish()
        now = time.perf_counter()
        num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        kind = "in the background" if in_background else "at once"
        say(
            f"| {kind} | {waited + now - asked:.2f} | {now - started:.1f} | {num_bytes / GIB:.2f} |"
        )
        remove_old(path, keep=1)


def _train_until_written(engine: engines.Engine, saving: Saving) -> float:
    """Seconds spent on asking."""
    waited, written = 0.0, False
    while not written:
        _take_step(engine)
        asked = time.perf_counter()
        written = saving.is_written()
        waited += time.perf_counter() - asked
    return waited


def _take_step(engine: engines.Engine) -> None:
    tokens = torch.randint(VOCABULARY, (1, LENGTH + 1))
    engine.train_step([{"tokens": tokens[:, :-1], "targets": tokens[:, 1:].clone()}], 1e-4)


def _build_engine(arguments: argparse.Namespace) -> engines.Engine:
    torch.manual_seed(0)
    model = transformer.Model(
        transformer.Config(
            vocab_size=VOCABULARY,
            d_model=arguments.d_model,
            num_layers=arguments.num_layers,
            num_heads=8,
            max_positions=LENGTH,
        )
    )
    task = causal_lm.Task(causal_lm.Config(), vocab_size=VOCABULARY, end_of_document=0)
    return engines.Engine(
        Objective(model, task),
        build_optimizer(model, OptimizerConfig()),
        Config(zero_stage=2, precision="bf16"),
        micro_batch_size=1,
        gradient_accumulation_steps=1,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of each kind")
    return parser


if __name__ == "__main__":
    main()
