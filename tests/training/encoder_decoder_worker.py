"""Two ranks train an encoder-decoder by every ZeRO stage and mode; beside them, torch alone.

`python encoder_decoder_worker.py OUT` with the variables of a launcher; rank 0 writes OUT.
"""

import sys

import numpy as np
import torch
from torch import nn

from training import distributed
from training import engine as engines
from training.activation_checkpointing import apply_activation_checkpointing
from training.augment.draws import sample_keys
from training.compilation import compile_blocks
from training.data.tokens import Sequences
from training.deepspeed_config import Config
from training.models import encoder_decoder
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.tasks import span_corruption

MODES = ("none", "full", "every_n", "selective", "offload")
CASES = [
    *((stage, mode, False) for stage in (0, 1, 2, 3) for mode in MODES),
    (2, "none", True),
    (3, "full", True),
]
"""ZeRO stage, activation checkpointing, whether blocks are compiled."""
NUM_STEPS, ROWS, CLIP = 4, 8, 0.5


def build_model(*, tied):
    torch.manual_seed(0)
    return encoder_decoder.Model(
        encoder_decoder.Config(
            vocab_size=40, d_model=16, num_layers=2, num_heads=2, tie_embeddings=tied
        )
    )


def build_task():
    config = span_corruption.Config(mask_documents=True, chunk_tokens=20)
    return span_corruption.Task(config, vocab_size=30, end_of_document=0)


def rows(step, first, stop):
    """Collated from sequences of these rows, which differ in weight."""
    positions = np.arange(step * ROWS, (step + 1) * ROWS)
    tokens = np.random.default_rng(step).integers(1, 30, (ROWS, 41))
    own = slice(first, stop)
    sequences = Sequences(
        tokens[own],
        [np.array([5 + row, 30]) for row in range(first, stop)],
        positions[own],
        np.arange(ROWS)[own] != 6,
        sample_keys(7, positions[own]),
    )
    return build_task().collate(sequences)


def by_torch(*, tied):
    """One process, the whole batch at once."""
    model, task = build_model(tied=tied), build_task()
    optimizer = build_optimizer(model, OptimizerConfig())
    losses = []
    for step in range(NUM_STEPS):
        batch = rows(step, 0, ROWS)
        loss = task.loss(model, batch)[0] / task.num_targets(batch)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def by_engine(stage, mode, is_compiled, *, tied):
    model = build_model(tied=tied)
    apply_activation_checkpointing(model.blocks, mode, every_n=2)
    if is_compiled:
        compile_blocks(model.blocks, backend="aot_eager")
    size = ROWS // distributed.world_size()
    engine = engines.Engine(
        Objective(model, build_task()),
        build_optimizer(model, OptimizerConfig()),
        Config(zero_stage=stage, precision="fp32", max_grad_norm=CLIP),
        micro_batch_size=size // 2,
        gradient_accumulation_steps=2,
    )
    first = size * distributed.rank()
    parts = [(first, first + size // 2), (first + size // 2, first + size)]
    return [
        float(engine.train_step([rows(step, *part) for part in parts], 0.01).loss)
        for step in range(NUM_STEPS)
    ]


def main(out):
    engines.initialize_distributed()
    results = {f"torch tied {tied}": by_torch(tied=tied) for tied in (False, True)}
    for case in CASES:
        results[case] = by_engine(*case, tied=False)
    for stage in (0, 3):
        results[stage, "tied"] = by_engine(stage, "full", False, tied=True)
    if distributed.is_rank_zero():
        torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1])
