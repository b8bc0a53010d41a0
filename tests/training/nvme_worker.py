"""States and weights in files, on gloo ranks: `nvme_worker.py OUT`; rank 0 writes losses by case.

Each case takes two steps, or loads the checkpoint of another behind them, and takes two more.
"""

import sys
from pathlib import Path

import torch

from training import distributed
from training import engine as engines
from training.deepspeed_config import Config
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.saving import write_files
from training.tasks import causal_lm

VOCABULARY, LENGTH = 64, 16
STATES = {"offload_optimizer": "nvme"}
ALL = STATES | {"offload_parameters": "nvme"}
WRITERS = {"memory": (3, {}), "states": (3, STATES), "all": (3, ALL)}
READERS = WRITERS | {"weights": (3, {"offload_parameters": "nvme"}), "zero1": (1, {})}


def build(folder, stage, options, *, seed=0):
    """1.8 million weights: DeepSpeed keeps in memory what has less than 1 MiB a rank."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "d_model": 384, "num_layers": 1, "num_heads": 2}
    model = transformer.Model(transformer.Config(**sizes, max_positions=LENGTH))
    task = causal_lm.Task(causal_lm.Config(), vocab_size=VOCABULARY, end_of_document=0)
    nvme = {"nvme_dir": str(folder / f"files-{len(list(folder.iterdir()))}")} if options else {}
    distributed.barrier()  # all have counted
    return engines.Engine(
        Objective(model, task),
        build_optimizer(model, OptimizerConfig(weight_decay=0.1)),
        Config(zero_stage=stage, precision="fp32", **options, **nvme),
        micro_batch_size=2,
        gradient_accumulation_steps=1,
    ), Path(nvme.get("nvme_dir", folder))


def take_steps(engine, numbers):
    losses = []
    for number in numbers:
        generator = torch.Generator().manual_seed(10 * number + distributed.rank())
        tokens = torch.randint(1, VOCABULARY, (2, LENGTH + 1), generator=generator)
        batch = {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
        losses.append(engine.train_step([batch], 1e-2).loss.item())
    return losses


def main(out):
    engines.initialize_distributed()
    folder, found = Path(out).parent / "work", {}
    if distributed.is_rank_zero():
        folder.mkdir()
    distributed.barrier()
    for writer, (stage, options) in WRITERS.items():
        engine, files = build(folder, stage, options)
        take_steps(engine, (0, 1))
        checkpoint = folder / f"checkpoint-{writer}"
        write_files(checkpoint, engine.take_files(checkpoint))
        names = {path.name for path in files.rglob("*.swp")} if options else set()
        found[writer] = {"on": take_steps(engine, (2, 3)), "files": names}
        distributed.barrier()
        found[writer]["consolidated"] = engines.load_weights(checkpoint)
        for reader, (other_stage, other_options) in READERS.items():
            other, _ = build(folder, other_stage, other_options, seed=99)
            other.load(checkpoint)
            if reader == "zero1":  # whose weights are whole
                state = other.module.state_dict()
                found[writer]["loaded"] = {name: one.clone() for name, one in state.items()}
            found[writer][reader] = take_steps(other, (2, 3))
    if distributed.is_rank_zero():
        torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
