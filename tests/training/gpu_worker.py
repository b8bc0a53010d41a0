"""Engine options that only GPUs have: `gpu_worker.py OUT`, a rank for each device.

Rank 0 writes, by case, the losses of a few steps on the same batches.
"""

import sys

import torch

from training import distributed
from training import engine as engines
from training.compilation import compile_objective
from training.deepspeed_config import Config
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.tasks import causal_lm

STEPS = 5
WHOLE = {"zero_stage": 0, "accumulation": 2}
CASES = {
    "zero0": WHOLE,
    "compiled model": {**WHOLE, "compile": "model"},
    "zero3": {},
    "deepcompile": {"compile": "deepcompile"},
    "quantized weights": {"quantize_weights": True},
    "quantized gradients": {"quantize_gradients": True},
}


def losses(accumulation=1, zero_stage=3, **options):
    """Of a small model in bf16."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "d_model": 256, "num_layers": 2, "num_heads": 4}
    model = transformer.Model(transformer.Config(**sizes, max_positions=64))
    task = causal_lm.Task(causal_lm.Config(), vocab_size=256, end_of_document=0)
    objective = Objective(model, task)
    compile_objective(objective, options.get("compile", "none"))
    engine = engines.Engine(
        objective,
        build_optimizer(model, OptimizerConfig()),
        Config(zero_stage=zero_stage, precision="bf16", **options),
        micro_batch_size=4,
        gradient_accumulation_steps=accumulation,
    )
    generator = torch.Generator().manual_seed(distributed.rank())
    batches = []
    for _ in range(accumulation):
        tokens = torch.randint(1, 256, (4, 65), generator=generator)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        batches.append({"tokens": inputs, "targets": targets})
    return [float(engine.train_step(batches, 1e-3).loss) for _ in range(STEPS)]


def main(out, names):
    engines.initialize_distributed()
    found = {name: losses(**CASES[name]) for name in names or CASES}
    if distributed.is_rank_zero():
        torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
