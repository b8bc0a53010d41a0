"""One process of a chain that hands checkpoints on: two ranks, then one, then two again, in bf16.

`python elastic_worker.py FOLDER [SOURCE]` with the variables of a launcher. A checkpoint's folder
is named by the ZeRO stages that its state came through, as `23` for stage 2 and then 3. Each stage
is read and written in both directions. Behind them comes the run of FOLDER/train.yaml.
"""

import re
import shutil
import sys
from pathlib import Path

import torch
from engine_parts import GLOBAL_BATCH, build_model, build_task, own_batches

import configs
from training import distributed, reshard
from training import engine as engines
from training.__main__ import train
from training.config import TrainingConfig
from training.deepspeed_config import Config
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.saving import write_files

LEARNING_RATE = 0.01


def main(folder, source):
    engines.initialize_distributed()
    reshard.SILENCE_SECONDS = 0
    losses = {}
    for way in ways(source):
        engine = build(int(way[-1]), seed=len(way))
        if source:
            check_fault(engine, source / way[:-1], folder)
            engine.load(source / way[:-1])
        else:
            take_steps(engine, range(3))
        save(engine, folder / way)
        losses[way] = take_steps(engine, [3, 4])
    train(configs.load(TrainingConfig, folder / "train.yaml"))
    if distributed.is_rank_zero():
        torch.save(losses, folder / "results.pt")


def ways(source):
    if source is None:
        return ["0", "1", "2", "3"]
    if distributed.world_size() == 1:
        return ["01", "12", "23", "30", "31"]
    return ["010", "121", "232", "303", "313"]


def check_fault(engine, checkpoint_dir, folder):
    """Without the layout of the first rank nothing is loaded."""
    broken = folder / "broken"
    if distributed.is_rank_zero():
        shutil.copytree(checkpoint_dir, broken)
        (broken / "layout-00000.json").unlink()
    distributed.barrier()
    try:
        engine.load(broken)
    except ValueError as error:
        assert re.search(r"broken: holds [\d,]+ of the [\d,]+ elements of rank", str(error))  # noqa: PT017
    else:
        raise AssertionError("loaded")
    distributed.barrier()
    if distributed.is_rank_zero():
        shutil.rmtree(broken)


def build(stage, *, seed):
    """Tied embeddings, frozen positions, a buffer, groups with their own rates, an average."""
    model = build_model(seed=seed)
    model.positions.requires_grad_(False)
    model.register_buffer("mean", torch.full((3,), float(seed)))
    return engines.Engine(
        Objective(model, build_task()),
        build_optimizer(model, OptimizerConfig(layer_decay=0.5)),
        Config(zero_stage=stage, precision="bf16", max_grad_norm=0.5),
        micro_batch_size=2,
        gradient_accumulation_steps=GLOBAL_BATCH // 2 // distributed.world_size(),
        ema_decay=0.5,
    )


def take_steps(engine, steps):
    return [float(engine.train_step(own_batches(n, 2), LEARNING_RATE).loss) for n in steps]


def save(engine, folder):
    if distributed.is_rank_zero():
        folder.mkdir()
    distributed.barrier()
    write_files(folder, engine.take_files(folder))
    distributed.barrier()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), Path(sys.argv[2]) if sys.argv[2:] else None)
