"""Cases of tensor parallelism, on as many gloo ranks as there are, two in each group that shares
weights; and the same steps by torch alone. Rank 0 writes them to a file, by name.

Then the run of `train.yaml` beside the file, and once more from its first checkpoint on. A second
word is the folder of fewer groups, whose checkpoints are read.
"""

import shutil
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import engine_parts as parts
import torch
from engine_line import STAGES
from torch import nn

import configs
from training import distributed
from training import engine as engines
from training.__main__ import train as train_run
from training.activation_checkpointing import apply_activation_checkpointing
from training.checkpoint import list_checkpoints
from training.compilation import compile_blocks
from training.config import TrainingConfig
from training.deepspeed_config import Config
from training.ema import load_parts
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.saving import write_files

GROUP = 2
MODELS = {
    "gpt": {"num_kv_heads": 4},
    "llama": {
        "num_kv_heads": 2,
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "tie_embeddings": False,
        "bias": False,
    },
}


def main(out, *sources):
    engines.initialize_distributed()
    results = {}
    for name, case in (cases(Path(out).parent) | more_groups(Path(out).parent, *sources)).items():
        try:
            results[name] = case()
        except Exception:  # noqa: BLE001  (the other cases go on)
            results[name] = {"error": traceback.format_exc()}
    runs(configs.load(TrainingConfig, Path(out).with_name("train.yaml")))
    if distributed.is_rank_zero():
        torch.save(results, out)


def runs(config):
    train_run(config)
    again = Path(f"{config.run_dir}-again")
    if distributed.is_rank_zero():
        shutil.copytree(config.run_dir, again)
        for path in list_checkpoints(again / "checkpoints")[1:]:
            shutil.rmtree(path)
    distributed.barrier()
    train_run(replace(config, run_dir=str(again), resume="required"))


def cases(folder):
    found = {f"reference {kind}": partial(reference, kind) for kind in MODELS}
    for stage in STAGES:
        found[f"gpt fp32 zero{stage}"] = partial(train, "gpt", stage, "fp32")
        for precision in ("fp32", "bf16"):
            found[f"llama {precision} zero{stage}"] = partial(train, "llama", stage, precision)
            found[f"save {precision} zero{stage}"] = partial(save, folder, stage, precision)
        found[f"moved zero{stage}"] = partial(moved, folder, stage)
    found["evaluate"] = partial(evaluate, 1)
    found["dropout"] = partial(dropout, 2)
    if distributed.world_size() == GROUP:
        for mode in ("full", "every_n", "offload"):
            found[mode] = partial(train, "gpt", 2, "fp32", activation_checkpointing=mode)
        found["compiled"] = partial(train, "gpt", 2, "fp32", compile="blocks")
        found["offloaded"] = partial(train, "gpt", 2, "fp32", offload_optimizer="cpu")
        found["offloaded zero3"] = partial(
            train, "gpt", 3, "fp32", offload_optimizer="cpu", offload_parameters="cpu"
        )
        found["bf16 states"] = partial(train, "gpt", 2, "bf16", optimizer_precision="bf16")
    return found


def build_model(kind, *, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": parts.VOCABULARY, "d_model": 16, "num_layers": 2, "num_heads": 4}
    config = transformer.Config(
        **sizes, d_ff=24, max_positions=parts.LENGTH, dropout=dropout, **MODELS[kind]
    )
    return transformer.Model(config)


def build(kind, stage, precision, *, dropout=0.0, seed=0, **settings):
    config = Config(
        zero_stage=stage,
        precision=precision,
        max_grad_norm=parts.CLIP,
        tensor_parallel_size=GROUP,
        **settings,
    )
    model = build_model(kind, dropout=dropout, seed=seed)
    apply_activation_checkpointing(model.blocks, config.activation_checkpointing, every_n=2)
    if config.compile == "blocks":
        compile_blocks(model.blocks, backend="aot_eager")
    torch.manual_seed(1 + distributed.rank() // GROUP)
    return engines.Engine(
        Objective(model, parts.build_task()),
        build_optimizer(model, OptimizerConfig()),
        config,
        micro_batch_size=2,
        gradient_accumulation_steps=parts.GLOBAL_BATCH // 2 // shares(),
        ema_decay=0.5,
    )


def shares():
    return distributed.world_size() // GROUP


def own_batches(step):
    batch, share = parts.global_batch(step), parts.GLOBAL_BATCH // shares()
    first = distributed.rank() // GROUP * share
    return [
        {name: tensor[start : start + 2] for name, tensor in batch.items()}
        for start in range(first, first + share, 2)
    ]


def take_steps(engine, steps):
    results = [engine.train_step(own_batches(step), parts.LEARNING_RATES[step]) for step in steps]
    rows = {
        "losses": [float(result.loss) for result in results],
        "norms": [float(result.grad_norm) for result in results],
        "targets": [int(result.num_targets) for result in results],
    }
    assert all(row == rows for row in distributed.gather(rows))
    return rows


def train(kind, stage, precision, **settings):
    engine = build(kind, stage, precision, **settings)
    held = sum(getattr(one, "ds_numel", one.numel()) for one in engine.module.parameters())
    return take_steps(engine, range(5)) | {"held": held}


def reference(kind):
    """By torch alone: the whole model, the whole batch at once, fp32."""
    model, rows = build_model(kind), {"losses": [], "norms": [], "targets": []}
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerConfig())
    for step, learning_rate in enumerate(parts.LEARNING_RATES):
        batch = parts.global_batch(step)
        logits = model(batch["tokens"]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, batch["targets"].flatten())
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        rows["norms"].append(float(nn.utils.clip_grad_norm_(model.parameters(), parts.CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        rows["losses"].append(float(loss))
        rows["targets"].append(parts.build_task().num_targets(batch))
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return rows | {
        "initial": initial,
        "weights": weights,
        "held": sum(one.numel() for one in model.parameters()),
    }


def write(folder, engine):
    if distributed.is_rank_zero():
        folder.mkdir(parents=True)
    distributed.barrier()
    write_files(folder, engine.take_files(folder))
    distributed.barrier()


def save(folder, stage, precision):
    """Whole weights at the start and behind five steps; a resume behind three, and what it says."""
    folder = folder / f"save-{precision}-zero{stage}"
    engine = build("llama", stage, precision)
    write(folder / "0", engine)
    initial = engines.load_weights(folder / "0")
    take_steps(engine, (0, 1, 2))
    write(folder / "3", engine)
    on = take_steps(engine, (3, 4))
    write(folder / "5", engine)
    other = build("llama", stage, precision, seed=99)
    other.load(folder / "3")
    again = take_steps(other, (3, 4))
    write(folder / "again", other)
    return {
        "initial": initial,
        "average": engines.load_weights(folder / "0", averaged=True),
        "averages": [engines.load_weights(folder / name, averaged=True) for name in ("5", "again")],
        "weights": [engines.load_weights(folder / name) for name in ("5", "again")],
        "on": on,
        "again": again,
        "files": sorted(path.name for path in (folder / "3").rglob("*")),
        "parts": len(load_parts(folder / "3")),
    }


def moved(folder, stage):
    """The checkpoint of a stage goes on at the next one, bit by bit."""
    folder, next_stage = folder / f"moved-zero{stage}", (stage + 1) % len(STAGES)
    engine = build("gpt", stage, "fp32")
    take_steps(engine, (0, 1, 2))
    write(folder / "3", engine)
    other = build("gpt", next_stage, "fp32", seed=99)
    other.load(folder / "3")
    write(folder / "again", other)
    return {
        "weights": [engines.load_weights(folder / name) for name in ("3", "again")],
        "averages": [engines.load_weights(folder / name, averaged=True) for name in ("3", "again")],
        "on": take_steps(engine, (3, 4)),
        "again": take_steps(other, (3, 4)),
    }


def more_groups(folder, *sources):
    """Cases that go on where fewer groups have written `moved`."""
    return {
        f"more groups zero{stage}": partial(
            go_on, folder / f"more-zero{stage}", Path(source) / f"moved-zero{stage}/3", stage
        )
        for source in sources
        for stage in STAGES
    }


def go_on(folder, source, stage):
    engine = build("gpt", stage, "fp32", seed=99)
    engine.load(source)
    write(folder, engine)
    both = (source, folder)
    return {
        "weights": [engines.load_weights(each) for each in both],
        "averages": [engines.load_weights(each, averaged=True) for each in both],
        "on": take_steps(engine, (3, 4)),
    }


def evaluate(stage):
    engine = build("gpt", stage, "fp32")
    batches = [batch for step in (0, 1) for batch in own_batches(step)]
    num_targets, means = engine.evaluate(batches)
    with engine.averaged():
        averaged = engine.evaluate(batches)[1]["loss"].item()
    model, both = build_model("gpt"), [parts.global_batch(step) for step in (0, 1)]
    tokens, targets = (torch.cat([batch[name] for batch in both]) for name in ("tokens", "targets"))
    expected = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    return {
        "loss": means["loss"].item(),
        "averaged": averaged,
        "targets": num_targets,
        "expected": float(expected),
        "expected targets": int((targets != -100).sum()),
    }


def dropout(stage):
    """What the ranks of a group hold whole stays the same on them: they drop the same features."""
    engine = build("gpt", stage, "fp32", dropout=0.3)
    rows = take_steps(engine, range(5))
    state = torch.get_rng_state().sum().item()
    return rows | {"states": distributed.gather(state)}


if __name__ == "__main__":
    main(*sys.argv[1:])
