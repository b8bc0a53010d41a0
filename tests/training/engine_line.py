"""Cases of the engine with a linear model whose gradient is its input: numbers by hand."""

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from training import distributed
from training import engine as engines
from training.deepspeed_config import Config
from training.host_memory import HostMemory
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.saving import write_files

STAGES = (0, 1, 2, 3)
POISONS = (float("nan"), 1e25)
"""Of a gradient; the last is finite, but its square is not."""


class SumTask:
    def num_targets(self, batch):
        return len(batch["x"])

    def loss(self, model, batch):
        return model(batch["x"]).float().sum(), {}


def build_line(config, *, accumulation, with_adam=False, ema_decay=0.0):
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    return engines.Engine(
        Objective(model, SumTask()),
        build_optimizer(model, OptimizerConfig()) if with_adam else sgd,
        config,
        micro_batch_size=1,
        gradient_accumulation_steps=accumulation,
        ema_decay=ema_decay,
    )


def line_step(engine, values):
    """A step of learning rate 1 on micro batches of one row each, `value 0 0 0`."""
    before = weights(engine)["weight"]
    dtype = next(engine.module.parameters()).dtype
    batches = [{"x": torch.tensor([[value, 0.0, 0.0, 0.0]], dtype=dtype)} for value in values]
    result = engine.train_step(batches, 1.0)
    after = weights(engine)["weight"]
    return {
        "norm": float(result.grad_norm),
        "moved": float((after - before).norm()),
        "finite": bool(after.isfinite().all()),
        "skipped": result.skipped,
        "scale": result.loss_scale,
        "stop": result.wants_stop,
    }


def accumulate(stage, precision):
    engine = build_line(
        Config(zero_stage=stage, precision=precision, max_grad_norm=0.0), accumulation=8
    )
    return line_step(engine, [256.0] + [1.0] * 7)


def reduce(stage, in_fp32):
    config = Config(zero_stage=stage, precision="bf16", max_grad_norm=0.0, reduce_in_fp32=in_fp32)
    engine = build_line(config, accumulation=2)
    return line_step(engine, [256.0 if distributed.rank() == 0 else 1.0] * 2)


def clip(stage, limit):
    engine = build_line(
        Config(zero_stage=stage, precision="fp32", max_grad_norm=limit), accumulation=1
    )
    return line_step(engine, [3.0])


def poison(stage, precision, value, **settings):
    """Two steps, with and without a poisoned one between them; AdamW remembers every gradient."""
    config = Config(zero_stage=stage, precision=precision, **settings)
    ends, asked = {}, []
    for poisons in ([], [value]):
        engine = build_line(config, accumulation=2, with_adam=True)
        line_step(engine, [1.0, 1.0])
        for bad in poisons:
            engine.admits = lambda loss, norm: asked.append(norm) or True
            poisoned = line_step(engine, [bad if distributed.rank() == 0 else 1.0, 1.0])
            engine.admits = lambda loss, norm: True
        healthy = line_step(engine, [2.0, 2.0])
        ends[len(poisons)] = weights(engine)["weight"]
    found = {"poisoned": poisoned, "healthy": healthy, "asked": asked}
    return {**found, "clean": ends[0], "weights": ends[1]}


def refuse(stage, precision, **settings):
    """Healthy steps, and between them one that is refused for its norm of 100.

    The last rank wishes to stop at the end.
    """
    with_fp16(precision == "fp16")
    try:
        settings |= {"initial_loss_scale_power": 3} if precision == "fp16" else {}
        config = Config(zero_stage=stage, precision=precision, **settings)
        engine = build_line(config, accumulation=2, with_adam=True)
        asked = []
        engine.admits = lambda loss, norm: asked.append((loss, norm)) or norm < 50
        steps = [line_step(engine, [1.0, 1.0])]
        before = held(engine)
        steps.append(line_step(engine, [100.0, 100.0]))
        after = held(engine)
        engine.wishes_stop = lambda: distributed.rank() == distributed.world_size() - 1
        steps.append(line_step(engine, [2.0, 2.0]))
        ends = held(engine)
    finally:
        with_fp16(False)
    names = ("before", "after", "ends", "asked")
    rows = [
        dict(zip(names, row, strict=True))
        for row in distributed.gather((before, after, ends, asked))
    ]
    return {"steps": steps, "ranks": rows}


def held(engine):
    """All tensors of this rank that a step changes, by place."""
    optimizer = engine.deepspeed.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = {f"master {name}": one for name, one in engine.partition.masters().items()}
    for number, state in enumerate(inner.state.values()):
        tensors |= {f"moment {number} {name}": one for name, one in state.items()}
    tensors |= {f"weight {name}": one for name, one in weights(engine).items()}
    return {name: torch.as_tensor(one).detach().clone() for name, one in tensors.items()}


def skipped_average(stage):
    """How far an average is behind each of two steps, of which the first is poisoned."""
    config = Config(zero_stage=stage, precision="fp32", max_grad_norm=0.0)
    engine = build_line(config, accumulation=1, ema_decay=0.9)
    before, ends = weights(engine)["weight"], []
    for value in (float("nan"), 1.0):
        line_step(engine, [value])
        with engine.averaged():
            ends.append((weights(engine)["weight"] - before)[0, 0].item())
    return ends


def overflow(stage, **settings):
    """The scale begins at 2 ** 16, above the largest fp16 number 65504."""
    return fp16_steps(stage, [1.0] * 4, **settings)


def least_scale(stage):
    """The scale begins at 2, and no scale is small enough."""
    return fp16_steps(stage, [float("inf")] * 6, initial_loss_scale_power=1)


def growing_scale(stage):
    """The scale doubles again and again."""
    return fp16_steps(stage, [1.0] * 7, initial_loss_scale_power=1, loss_scale_window=2)


def fp16_steps(stage, values, **settings):
    with_fp16(True)
    try:
        config = Config(zero_stage=stage, precision="fp16", max_grad_norm=0.0, **settings)
        engine = build_line(config, accumulation=1)
        return [line_step(engine, [value]) for value in values]
    finally:
        with_fp16(False)


def moved_scale(folder, stage):
    """Steps whose first overflow, and one more by an engine of the next stage that loads them."""
    configs = [
        Config(zero_stage=number, precision="fp16", max_grad_norm=0.0)
        for number in (stage, (stage + 1) % len(STAGES))
    ]
    folder = folder / f"scale-zero{stage}"
    with_fp16(True)
    try:
        engine = build_line(configs[0], accumulation=1)
        for _ in range(3):
            line_step(engine, [1.0])
        saved = weights(engine)["weight"]
        files = HostMemory().copy(engine.take_files(folder))
        on = line_step(engine, [1.0])
        write_files(folder, files)
        distributed.barrier()
        other = build_line(configs[1], accumulation=1)
        other.load(folder)
        loaded = weights(other)["weight"]
        return {"saved": saved, "loaded": loaded, "on": on, "moved": line_step(other, [1.0])}
    finally:
        with_fp16(False)


def with_fp16(supported):
    """Let DeepSpeed believe that this CPU computes fp16: torch does, slowly."""
    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: supported
    kinds = [torch.float, torch.bfloat16] + [torch.float16] * supported
    accelerator.supported_dtypes = lambda: kinds


def weights(engine):
    parameters = list(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(
        [parameter for _, parameter in parameters], enabled=engine.config.zero_stage == 3
    ):
        return {name: parameter.detach().float().clone() for name, parameter in parameters}
