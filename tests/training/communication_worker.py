"""Two ranks train a step of each case; rank 0 writes what DeepSpeed's comms logger counted."""

import sys

import torch
from deepspeed.comm import comm

from training import distributed
from training import engine as engines
from training.activation_checkpointing import apply_activation_checkpointing
from training.deepspeed_config import Config
from training.models import transformer
from training.objective import Objective, count_parameters
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.tasks import causal_lm

CASES = [
    (stage, precision, accumulation, "none", 1)
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    for accumulation in (1, 2)
] + [(3, "bf16", 1, "full", 1), (2, "bf16", 2, "full", 1), (3, "bf16", 1, "none", 2)]
"""ZeRO stage, precision, micro batches, activation checkpointing, hpz_partition_size."""
STEPS = 2
NAMES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather_into_tensor",
    "reduce_scatter": "reduce_scatter_tensor",
}
"""Ours, and those of the logger."""


def count(stage, precision, accumulation, activation_checkpointing, secondary):
    """Bytes of a step by collective, and the number of weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 64, "num_layers": 4, "num_heads": 4, "max_positions": 16}
    model = transformer.Model(transformer.Config(**sizes))
    apply_activation_checkpointing(model.blocks, activation_checkpointing, every_n=1)
    task = causal_lm.Task(causal_lm.Config(), vocab_size=64, end_of_document=0)
    engine = engines.Engine(
        Objective(model, task),
        build_optimizer(model, OptimizerConfig()),
        Config(zero_stage=stage, precision=precision, hpz_partition_size=secondary),
        micro_batch_size=2,
        gradient_accumulation_steps=accumulation,
    )
    tokens = torch.randint(1, 64, (2, 16))
    batches = [{"tokens": tokens, "targets": tokens}] * accumulation
    engine.train_step(batches, 1e-3)  # the first one also learns the order of weights
    logger = comm.comms_logger
    logger.prof_all, logger.prof_ops, logger.verbose, logger.debug = True, [], False, False
    logger.reset_data()
    logger.enabled = True
    for _ in range(STEPS):
        engine.train_step(batches, 1e-3)
    logger.enabled = False
    sums = {
        name: sum(size * row[0] for size, row in sizes.items()) / STEPS
        for name, sizes in logger.comms_dict.items()
    }
    return sums, count_parameters(model)


def main(out):
    engines.initialize_distributed()
    found = {case: count(*case) for case in CASES}
    if distributed.is_rank_zero():
        torch.save((found, NAMES), out)


if __name__ == "__main__":
    main(sys.argv[1])
