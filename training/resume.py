"""Continuing a run from its last good checkpoint, and refusing to continue another run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import configs
from pipeline.manifest import Manifest
from training import checkpoint, distributed
from training.checkpoint import RunState
from training.config import TrainingConfig
from training.console import say
from training.data.config import describe_order
from training.engine import Engine
from training.random_state import restore_random_state

SAME = (
    "seed",
    "model",
    "task.name",
    "engine.precision",
    "engine.optimizer_precision",
    "optimizer.decay_embeddings",
    "optimizer.layer_decay",
)
"""Keys that decide what lies in a checkpoint's files, and its random numbers: a run keeps them."""

TOLD = (
    "num_steps",
    "batch.global_batch_size",
    "task",
    "augment",
    "optimizer",
    "schedule",
    "ema",
    "engine.max_grad_norm",
)
"""Keys that a run may change on its way; what it learns changes with them, so each is told."""


def resume(config: TrainingConfig, run_dir: Path, manifest: Manifest, engine: Engine) -> RunState:
    """The state of the last good checkpoint, loaded into the engine, or that of a new run.

    Raises:
        ValueError: the checkpoint and the config do not fit together, `resume` forbids it, or all
            checkpoints are damaged.
    """
    checkpoints_dir = run_dir / "checkpoints"
    there = distributed.broadcast(checkpoint.list_checkpoints(checkpoints_dir))
    if config.resume == "never" and there:
        raise ValueError(
            f"resume=never, but {checkpoints_dir} holds checkpoints; choose another run_dir"
        )
    found = checkpoint.find_last_good(checkpoints_dir, warn=say)
    if found is None:
        if there:
            raise ValueError(
                f"{checkpoints_dir} holds only damaged checkpoints; bring one back, or choose "
                "another run_dir to start anew"
            )
        if config.resume == "required":
            raise ValueError(f"resume=required, but {checkpoints_dir} holds no checkpoint")
        return _new(config, manifest)
    state = checkpoint.read_state(found)
    _check(state, config, manifest, found)
    engine.load(found)
    restore_random_state(
        found,
        seed=config.seed,
        step=state.step,
        ranks_per_group=config.engine.tensor_parallel_size,
    )
    here = replace(state, world_size=distributed.world_size(), zero_stage=config.engine.zero_stage)
    moved = "" if here == state else f", from {state.where} to {here.where}"
    say(f"resumed from {found}: step {state.step}, {state.samples_seen:,} samples seen{moved}")
    if changed := _describe_changes(config, found):
        say(f"changed since that checkpoint: {changed}")
    if state.step >= config.num_steps:
        say(f"nothing to do: num_steps={config.num_steps} are done")
    return here


def _new(config: TrainingConfig, manifest: Manifest) -> RunState:
    return RunState(
        step=0,
        samples_seen=0,
        skipped_steps=0,
        world_size=distributed.world_size(),
        zero_stage=config.engine.zero_stage,
        data_order=describe_order(config.data, manifest),
    )


def _check(state: RunState, config: TrainingConfig, manifest: Manifest, found: Path) -> None:
    """Refuse a config with which the run would be another one, naming each difference."""
    pairs = {"data order": (state.data_order, describe_order(config.data, manifest))}
    for name, (then, here) in (pairs | _pairs(config, found, SAME)).items():
        if then != here:
            raise ValueError(
                f"{found} was written with {name} {then}, this run has {here}; "
                f"continue with {then}, or choose another run_dir"
            )


def _describe_changes(config: TrainingConfig, found: Path) -> str:
    pairs = _pairs(config, found, TOLD).items()
    return ", ".join(f"{name} {then} -> {here}" for name, (then, here) in pairs if then != here)


def _pairs(
    config: TrainingConfig, found: Path, keys: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Of a checkpoint's config and of this one, by name."""
    before = configs.to_dict(configs.load(TrainingConfig, found / checkpoint.CONFIG))
    now = configs.to_dict(config)
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in keys:
        pairs |= _leaves(key, _look_up(before, key), _look_up(now, key))
    return pairs


def _leaves(key: str, then: Any, here: Any) -> dict[str, tuple[Any, Any]]:
    if not (isinstance(then, dict) and isinstance(here, dict)):
        return {key: (then, here)}
    names = [*here, *(name for name in then if name not in here)]
    return {f"{key}.{name}": (then.get(name), here.get(name)) for name in names}


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
