"""All engine cases in one process group: started once per world size, since an import takes 7 s.

`python engine_worker.py OUT` with the variables of a launcher; rank 0 writes OUT, a dictionary from
case to result, or to the traceback under `error`. The global batches do not depend on world size.
"""

import resource
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from engine_line import (
    POISONS,
    STAGES,
    accumulate,
    clip,
    growing_scale,
    least_scale,
    moved_scale,
    overflow,
    poison,
    reduce,
    refuse,
    skipped_average,
    weights,
    with_fp16,
)
from engine_parts import (
    DECAY,
    GLOBAL_BATCH,
    build,
    build_model,
    evaluate,
    global_batch,
    own_batches,
    reference,
    take_steps,
    train,
)

from training import checkpoint, distributed
from training import engine as engines
from training.checkpoint import RunState
from training.host_memory import HostMemory
from training.saving import save_checkpoint, write_files


def main(out):
    engines.initialize_distributed()
    results = {}
    for name, case in cases(Path(out).parent).items():
        try:
            results[name] = case()
        except Exception:  # noqa: BLE001  (the other cases go on)
            results[name] = {"error": traceback.format_exc()}
    if distributed.is_rank_zero():
        torch.save(results, out)


def cases(folder):
    """By name. One rank takes what it should share with two."""
    found = {"reference": reference, "layer decay reference": partial(reference, DECAY)}
    for stage in STAGES:
        for accumulation in (1, 4):
            micro = GLOBAL_BATCH // accumulation // distributed.world_size()
            found[f"fp32 zero{stage} accumulation{accumulation}"] = partial(
                train, stage, micro_batch_size=micro
            )
        found[f"skipped average zero{stage}"] = partial(skipped_average, stage)
        for precision in ("fp32", "bf16"):
            found[f"average {precision} zero{stage}"] = partial(average, folder, stage, precision)
            found[f"accumulate {precision} zero{stage}"] = partial(accumulate, stage, precision)
            found[f"save {precision} zero{stage}"] = partial(
                save_and_load, folder, stage, precision
            )
            for value in POISONS:
                found[f"poison {value} {precision} zero{stage}"] = partial(
                    poison, stage, precision, value
                )
            found[f"refuse {precision} zero{stage}"] = partial(refuse, stage, precision)
        found[f"full disk zero{stage}"] = partial(full_disk, folder, stage)
        found[f"layer decay zero{stage}"] = partial(layer_decay, folder, stage)
    import engine_options  # it takes what is here

    for precision in ("fp32", "bf16", "fp16"):
        found[f"drawn {precision}"] = partial(engine_options.drawn, precision)
    if distributed.world_size() > 1:
        found |= engine_options.cases(folder)
        for stage in STAGES:
            found |= cases_of_two_ranks(stage)
            found[f"moved scale zero{stage}"] = partial(moved_scale, folder, stage)
    found["fp16 refused"] = fp16_refused
    found["save fp16 zero0"] = partial(save_and_load, folder, 0, "fp16")
    found["overflow zero0"] = partial(overflow, 0)
    found["least scale zero0"] = partial(least_scale, 0)
    found["growing scale zero0"] = partial(growing_scale, 0)
    return found


def cases_of_two_ranks(stage):
    found = {
        f"bf16 zero{stage}": partial(train, stage, precision="bf16"),
        f"evaluate zero{stage}": partial(evaluate, stage),
    }
    for in_fp32 in (True, False):
        found[f"reduce {in_fp32} zero{stage}"] = partial(reduce, stage, in_fp32)
    for limit in (0.0, 0.5):
        found[f"clip {limit} zero{stage}"] = partial(clip, stage, limit)
    for mode in ("none", "full", "every_n", "selective", "offload"):
        found[f"blocks {mode} zero{stage}"] = partial(
            train, stage, activation_checkpointing=mode, dropout=0.2
        )
    if stage:
        found[f"overflow zero{stage}"] = partial(overflow, stage)
        found[f"least scale zero{stage}"] = partial(least_scale, stage)
        found[f"growing scale zero{stage}"] = partial(growing_scale, stage)
        found[f"refuse fp16 zero{stage}"] = partial(refuse, stage, "fp16")
    return found


def write(folder, files):
    write_files(folder, files)
    distributed.barrier()


def save_and_load(folder, stage, precision, **settings):
    folder = folder / f"{precision}-zero{stage}"
    if distributed.is_rank_zero():
        folder.mkdir(parents=True)
    distributed.barrier()
    engine = build(stage, precision=precision, **settings)
    take = partial(take_steps, micro_batch_size=settings.get("micro_batch_size", 2))
    take(engine, (0, 1))
    saved = weights(engine)
    copied = HostMemory().copy(engine.take_files(folder))
    on = take(engine, (2, 3))  # before a byte of it is written
    write(folder, copied)
    other = build(stage, precision=precision, seed=99, **settings)
    other.load(folder)
    case = {
        "files": sorted(path.name for path in folder.rglob("*")),
        "saved": saved,
        "loaded": weights(other),
        "consolidated": engines.load_weights(folder),
        "on": on,
        "resumed": take(other, (2, 3)),
    }
    take(engine, (4,))
    engine.load(folder)
    return case | {"back": take(engine, (2, 3))}


def layer_decay(folder, stage):
    """Five steps, and the last two again behind a checkpoint, by an engine that had other rates."""
    engine = build(stage, layer_decay=DECAY)
    initial = weights(engine)
    first = take_steps(engine, (0, 1, 2))
    folder = folder / f"decay-zero{stage}"
    write(folder, engine.take_files(folder))
    other = build(stage, layer_decay=DECAY, seed=99)
    other.load(folder)
    on, resumed = take_steps(engine, (3, 4)), take_steps(other, (3, 4))
    return {
        "initial": initial,
        "losses": first["losses"] + on["losses"],
        "weights": on["weights"],
        "on": on,
        "resumed": resumed,
    }


def average(folder, stage, precision):
    """Weights and their average behind each step, and how an engine that loads them goes on."""
    folder = folder / f"average-{precision}-zero{stage}"
    engine, other = (build(stage, precision=precision, seed=n, ema_decay=0.2) for n in (0, 99))
    history = []
    for step in range(5):
        take_steps(engine, [step] if step else [])
        if distributed.is_rank_zero():
            (folder / str(step)).mkdir(parents=True)
        distributed.barrier()
        write(folder / str(step), engine.take_files(folder / str(step)))
        history.append(
            [engines.load_weights(folder / str(step), averaged=a) for a in (False, True)]
        )
    before, batches = weights(engine), own_batches(0, 2)
    with engine.averaged():
        inside = weights(engine)
        loss = engine.evaluate(batches)[1]["loss"].item()
    after = weights(engine)
    other.load(folder / "2")
    take_steps(other, [3, 4])
    with other.averaged():
        resumed = weights(other)
    return {
        "history": history,
        "before": before,
        "after": after,
        "inside": inside,
        "loss": loss,
        "expected loss": loss_of(history[-1][1]),
        "resumed": resumed,
        "files": sorted(path.name for path in (folder / "4").glob("ema-*")),
    }


def loss_of(state):
    """Of the first global batch."""
    model, batch = build_model(), global_batch(0)
    model.load_state_dict(state)
    logits = model(batch["tokens"]).flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch["targets"].flatten()).item()


def full_disk(folder, stage):
    """The disk of the last rank is full while the second of three checkpoints is written."""
    folder = folder / f"full-zero{stage}"
    engine = build(stage, precision="bf16")
    take_steps(engine, (0,))
    messages = []
    for step in (1, 2, 3):
        is_full = step == 2 and distributed.rank() == distributed.world_size() - 1
        state = RunState(
            step=step,
            samples_seen=0,
            skipped_steps=0,
            world_size=1,
            zero_stage=stage,
            data_order="",
        )
        limit_files(2000 if is_full else None)
        try:
            save_checkpoint(folder, state, engine.take_files, "a: 1\n")
            message = ""
        except OSError as error:
            message = str(error)
        limit_files(None)
        messages.append(distributed.gather(message))
        if step == 2:
            found = sorted(path.name for path in folder.iterdir())
            last_good = checkpoint.find_last_good(folder, warn=print)
    return {
        "messages": messages,
        "found": found,
        "last good": last_good.name,
        "in the end": sorted(path.name for path in folder.iterdir()),
        "faults": checkpoint.find_faults(folder / "step-00000003"),
    }


def limit_files(num_bytes):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if num_bytes is None else num_bytes, hard))


def fp16_refused():
    with_fp16(False)
    messages = []
    for stage in STAGES:
        try:
            build(stage, precision="fp16")
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


if __name__ == "__main__":
    main(sys.argv[1])
