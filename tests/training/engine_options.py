"""Cases of the engine's options on memory: each beside the same steps without it."""

from functools import partial

import engine_line as line
import engine_parts as parts
import engine_worker as worker
import torch

from training import distributed
from training import engine as engines
from training.activation_checkpointing import apply_activation_checkpointing
from training.compilation import compile_objective
from training.deepspeed_config import Config
from training.models import transformer
from training.objective import Objective
from training.optimizer import Config as OptimizerConfig
from training.optimizer import build_optimizer
from training.sequence_parallel import share_sequences

STATES = {"optimizer_precision": "bf16", "micro_batch_size": 4}


def cases(folder):
    found = {}
    for stage in (1, 2, 3):
        for precision in ("fp32", "bf16"):
            found[f"offload {precision} zero{stage}"] = partial(
                steps_and_states, stage, precision=precision, offload_optimizer="cpu"
            )
            found[f"poison offload {precision} zero{stage}"] = partial(
                line.poison, stage, precision, line.POISONS[0], offload_optimizer="cpu"
            )
        for precision in ("fp32", "bf16", "fp16"):
            found[f"refuse offload {precision} zero{stage}"] = partial(
                line.refuse, stage, precision, offload_optimizer="cpu"
            )
        found[f"bf16 states zero{stage}"] = partial(steps_and_states, stage, **STATES)
        found[f"save bf16 states zero{stage}"] = partial(
            worker.save_and_load, folder / "states", stage, "bf16", **STATES
        )
        found[f"save offload zero{stage}"] = partial(
            worker.save_and_load, folder / "offload", stage, "bf16", offload_optimizer="cpu"
        )
    for precision in ("fp32", "bf16"):
        found[f"offload all {precision}"] = partial(
            steps_and_states,
            3,
            precision=precision,
            offload_optimizer="cpu",
            offload_parameters="cpu",
        )
        found[f"zero init {precision}"] = partial(zero_init, precision)
    found["secondary partition"] = partial(steps_and_states, 3, hpz_partition_size=2)
    found["compiled"] = partial(compiled, 2, "blocks")
    found["compiled model"] = partial(compiled, 0, "model")
    found["not to be shared"] = not_to_be_shared
    for stage in (0, 2, 3):
        for masked in (False, True):
            found[f"shared sequences masked {masked} zero{stage}"] = partial(
                shared_sequences, stage, masked=masked
            )
    return found


def steps_and_states(stage, *, precision="bf16", micro_batch_size=2, **settings):
    """Losses, weights, and what the optimizer keeps, by name."""
    engine = parts.build(stage, precision=precision, micro_batch_size=micro_batch_size, **settings)
    optimizer = engine.deepspeed.optimizer
    taken = parts.take_steps(engine, range(5), micro_batch_size=micro_batch_size)
    first = next(iter(optimizer.optimizer.state.values()))
    return taken | {
        "moments": {first["exp_avg"].dtype, first["exp_avg_sq"].dtype},
        "masters": {part.dtype for part in engine.partition.masters().values()},
        "offloads_optimizer": getattr(optimizer, "cpu_offload", False)
        or getattr(optimizer, "offload_optimizer", False),
        "offloads_parameters": getattr(optimizer, "offload_param", False),
        "secondary": secondary_shape(engine) if stage == 3 else None,
    }


def secondary_shape(engine):
    """Of the second copy of the first weight that ZeRO++ keeps in the node."""
    first = next(engine.module.parameters())
    return getattr(first, "ds_secondary_tensor", None)


def zero_init(precision):
    config = Config(zero_stage=3, precision=precision, zero_init=True, max_grad_norm=parts.CLIP)
    is_from_other = precision == "bf16"  # as by init_from
    with engines.construction(config):
        model = parts.build_model(seed=int(is_from_other))
    sizes = [parameter.numel() for parameter in model.parameters()]
    if is_from_other:
        engines.assign_weights(model, parts.build_model().state_dict())
    torch.manual_seed(1 + distributed.rank())
    engine = engines.Engine(
        Objective(model, parts.build_task()),
        build_optimizer(model, OptimizerConfig()),
        config,
        micro_batch_size=2,
        gradient_accumulation_steps=parts.GLOBAL_BATCH // 2 // distributed.world_size(),
    )
    return {"held": sum(sizes)} | parts.take_steps(engine, range(5))


def drawn(precision):
    """The initial weights of one seed, without zero_init and with it."""
    line.with_fp16(precision == "fp16")
    found = []
    try:
        for is_partitioned in (False, True):
            config = Config(zero_stage=3, precision=precision, zero_init=is_partitioned)
            with engines.construction(config):
                model = parts.build_model()
            engine = engines.Engine(
                Objective(model, parts.build_task()),
                build_optimizer(model, OptimizerConfig()),
                config,
                micro_batch_size=1,
                gradient_accumulation_steps=1,
            )
            found.append(line.weights(engine))
    finally:
        line.with_fp16(False)
    return found


def compiled(stage, mode):
    model = parts.build_model()
    objective = Objective(model, parts.build_task())
    compile_objective(objective, mode, backend="aot_eager")
    engine = engines.Engine(
        objective,
        build_optimizer(model, OptimizerConfig()),
        Config(zero_stage=stage, precision="fp32", max_grad_norm=parts.CLIP, compile=mode),
        micro_batch_size=2,
        gradient_accumulation_steps=parts.GLOBAL_BATCH // 2 // distributed.world_size(),
    )
    return parts.take_steps(engine, range(5))


def shared_sequences(stage, *, masked):
    """Each rank has half of the positions of all rows; beside it, ranks with rows of their own."""
    task = parts.build_task()
    results = {}
    for size in (1, 2):
        engine = build_with_few_keys(stage, sequence_parallel_size=size)
        results[size] = [
            engine.train_step(own_positions(step, task, size, masked=masked), 0.01)
            for step in range(4)
        ]
        means = engine.evaluate(own_positions(4, task, size, masked=masked))[1]
        results[size] = {
            "losses": [float(result.loss) for result in results[size]],
            "norms": [float(result.grad_norm) for result in results[size]],
            "targets": [int(result.num_targets) for result in results[size]],
            "evaluation": means["loss"].item(),
            "shape": tuple(
                torch.cat([batch["tokens"] for batch in own_positions(4, task, size)]).shape
            ),
        }
    return results


def build_with_few_keys(stage, *, sequence_parallel_size):
    """One head of keys for two of queries, which two ranks cannot share as they are."""
    torch.manual_seed(0)
    config = Config(
        zero_stage=stage, precision="fp32", sequence_parallel_size=sequence_parallel_size
    )
    model = transformer.Model(
        transformer.Config(
            vocab_size=parts.VOCABULARY,
            d_model=16,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2 - stage % 2,
            max_positions=parts.LENGTH,
            positions="learned" if stage else "rotary",
        )
    )
    apply_activation_checkpointing(model.blocks, "full" if stage else "none")
    if sequence_parallel_size > 1:
        share_sequences(model, sequence_parallel_size)
    return engines.Engine(
        Objective(model, parts.build_task()),
        build_optimizer(model, OptimizerConfig()),
        config,
        micro_batch_size=4,
        gradient_accumulation_steps=sequence_parallel_size,
    )


def own_positions(step, task, size, *, masked=False):
    batch = parts.global_batch(step)
    if masked:
        cut = torch.arange(parts.LENGTH) >= 3  # (T), inside the half of the first rank
        batch["documents"] = cut.long().expand(parts.GLOBAL_BATCH, -1)
        batch["positions"] = (torch.arange(parts.LENGTH) - 3 * cut).expand(parts.GLOBAL_BATCH, -1)
    if size > 1:
        batch = task.share(batch, index=distributed.rank(), size=size)
    first = 0 if size > 1 else 4 * distributed.rank()
    return [
        {name: tensor[start : start + 4] for name, tensor in batch.items()}
        for start in range(first, first + 4 * size, 4)
    ]


def not_to_be_shared():
    found = {}
    model = transformer.Model(
        transformer.Config(vocab_size=5, d_model=6, num_layers=1, num_heads=3, max_positions=4)
    )
    for name, check in (
        ("ranks", partial(distributed.check_groups, 3, "engine.sequence_parallel_size")),
        ("heads", partial(share_sequences, model, 2)),
    ):
        try:
            check()
        except ValueError as error:
            found[name] = str(error)
    return found
