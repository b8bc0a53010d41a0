"""A rank of `training.doctor.parity`: `python -m training.doctor.parity_rank OUT ROWS CASE ...`."""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812

from training import distributed
from training.activation_checkpointing import apply_activation_checkpointing
from training.compilation import compile_objective
from training.deepspeed_config import Config
from training.doctor.parity import CASES, EMA_DECAY, Result
from training.engine import Engine, assign_weights, construction, initialize_distributed
from training.models import transformer
from training.objective import MicroBatch, Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.tasks import causal_lm

NUM_STEPS = 4
LENGTH = 16
VOCABULARY = 61
LEARNING_RATE = 0.01
REDUCED_BYTES = 64 * 2**20


def main() -> None:
    """Run all cases; rank 0 writes the results."""
    initialize_distributed()
    out, rows = Path(sys.argv[1]), int(sys.argv[2])
    results = {"average": _safely(partial(_train_plainly, rows))}
    results["reference"] = replace(results["average"], losses=results["average"].losses[:NUM_STEPS])
    for name in sys.argv[3:]:
        results[name] = _safely(partial(_train, rows, **CASES[name]))
    if distributed.world_size() > 1:
        results["bandwidth"] = _safely(_measure_all_reduce)
    if distributed.is_rank_zero():
        tree = {name: asdict(result) for name, result in results.items()}
        out.write_text(json.dumps(tree))
    distributed.leave()


def _safely(run: Callable[[], list[float]]) -> Result:
    try:
        return Result(run())
    except Exception as error:  # noqa: BLE001  (whatever it is, it is what was looked for)
        return Result([], " ".join(f"{type(error).__name__}: {error}".split())[:300])


def _build_model() -> transformer.Model:
    torch.manual_seed(0)
    return transformer.Model(
        transformer.Config(
            vocab_size=VOCABULARY, d_model=32, num_layers=2, num_heads=4, max_positions=LENGTH
        )
    )


def _global_batch(step: int, rows: int) -> MicroBatch:
    """Rows differ in targets, so that a mean of means is not the mean."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (rows, LENGTH + 1), generator=generator)  # (B, T + 1)
    targets = tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, : row % LENGTH] = causal_lm.IGNORED
    return {"tokens": tokens[:, :-1].clone(), "targets": targets}


def _train_plainly(rows: int) -> list[float]:
    """By torch alone, the whole batch at once; behind the steps, with the average of weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _build_model().to(device)
    averaged = copy.deepcopy(model)
    optimizer = build_optimizer(model, OptimizerConfig())
    losses = []
    for step in range(NUM_STEPS):
        loss = _plain_loss(model, _global_batch(step, rows), device)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.mul_(decay).add_((1 - decay) * weight)
    with torch.no_grad():
        losses.append(_plain_loss(averaged, _global_batch(NUM_STEPS, rows), device).item())
    return losses


def _plain_loss(model: transformer.Model, batch: MicroBatch, device: str) -> torch.Tensor:
    logits = model(batch["tokens"].to(device)).flatten(0, 1)  # (B T, V)
    return F.cross_entropy(logits, batch["targets"].to(device).flatten())


def _train(
    rows: int, *, accumulation: int = 1, ema_decay: float = 0.0, **settings: Any
) -> list[float]:
    """By the engine, each rank its rows; one is refused behind the first, and changes nothing."""
    options: dict[str, Any] = {"precision": "fp32", "max_grad_norm": 1.0} | settings
    config = Config(**options)
    with construction(config):
        model = _build_model()
    if config.zero_init:  # a GPU has drawn others
        assign_weights(model, _build_model().state_dict())
    apply_activation_checkpointing(
        model.blocks,
        config.activation_checkpointing,
        every_n=config.activation_checkpointing_every_n,
    )
    task = causal_lm.Task(causal_lm.Config(), vocab_size=VOCABULARY, end_of_document=0)
    objective = Objective(model, task)
    compile_objective(objective, config.compile)
    share = rows // distributed.world_size()
    engine = Engine(
        objective,
        build_optimizer(model, OptimizerConfig()),
        config,
        micro_batch_size=share // accumulation,
        gradient_accumulation_steps=accumulation,
        ema_decay=ema_decay,
    )
    batches = partial(_own_batches, rows=rows, micro=share // accumulation)
    losses = []
    for step in range(NUM_STEPS):
        losses.append(float(engine.train_step(batches(step), LEARNING_RATE).loss))
        if step == 0:
            _refuse_step(engine, batches(NUM_STEPS))
    if ema_decay:
        with engine.averaged():
            losses.append(float(engine.evaluate(batches(NUM_STEPS))[1]["loss"]))
    return losses


def _refuse_step(engine: Engine, batches: list[MicroBatch]) -> None:
    admits, engine.admits = engine.admits, lambda loss, norm: False
    result = engine.train_step(batches, LEARNING_RATE)
    engine.admits = admits
    if not result.skipped:
        raise ValueError("a step that was refused is taken")


def _own_batches(step: int, *, rows: int, micro: int) -> list[MicroBatch]:
    """This rank's share of a global batch, in micro batches."""
    batch, share = _global_batch(step, rows), rows // distributed.world_size()
    first = distributed.rank() * share
    return [
        {name: each[start : start + micro] for name, each in batch.items()}
        for start in range(first, first + share, micro)
    ]


def _measure_all_reduce() -> list[float]:
    """Bus bandwidth of an all-reduce, GB/s: bytes x 2 (n - 1) / n over the time; median of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor, ranks, seconds = (
        torch.zeros(REDUCED_BYTES // 4, device=device),
        dist.get_world_size(),
        [],
    )
    for _ in range(6):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[1:])[2]  # the first connects
    return [REDUCED_BYTES * 2 * (ranks - 1) / ranks / median / 1e9]


if __name__ == "__main__":
    main()
