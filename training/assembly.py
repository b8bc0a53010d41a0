"""Builds the parts of a run from its config: where models, tasks, data and the engine meet."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import configs
from pipeline.manifest import Manifest
from pipeline.urls import is_local
from training import checkpoint, distributed, sequence_parallel
from training.activation_checkpointing import apply_activation_checkpointing
from training.batch_size import accumulation_steps
from training.checkpoint import RunState
from training.compilation import compile_objective
from training.config import TrainingConfig
from training.console import say
from training.data.loader import EvaluationBatches, Loader
from training.data.shards import load_manifest
from training.engine import Engine, construction
from training.events import EventFile
from training.hooks.anomalies import AnomalyHook, Rollback, pass_over
from training.hooks.checkpoints import CheckpointHook
from training.hooks.damage import DamageHook
from training.hooks.evaluation import EvaluationHook
from training.hooks.memory import MemoryHook
from training.hooks.metrics import MetricsHook
from training.hooks.probe import ProbeHook
from training.hooks.store import StoreHook
from training.hooks.watchdog import Watchdog
from training.initial_weights import take_initial_weights
from training.kinds import kind_of
from training.memory.prediction import predict
from training.memory.zero import Ranks
from training.objective import Objective, count_parameters
from training.optimizer import build_optimizer
from training.resume import resume
from training.run_dataset import DatasetFacts, keep_facts, read_facts
from training.schedule import learning_rate
from training.trainer import Hook, Trainer


@dataclass(frozen=True, slots=True)
class Run:
    """What is known before anything is built."""

    dir: Path
    manifest: Manifest
    facts: DatasetFacts
    task: Any
    accumulation: int


def open_run(config: TrainingConfig) -> Run:
    """Read the manifest and check what can be checked."""
    for option in ("sequence_parallel_size", "tensor_parallel_size", "hpz_partition_size"):
        distributed.check_groups(getattr(config.engine, option), f"engine.{option}")
    accumulation = accumulation_steps(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        world_size=_data_rank(config)[1],
    )
    manifest = load_manifest(config.data.dataset_dir)
    if config.evaluation.every_steps and not manifest.splits.get("validation"):
        raise ValueError(
            f"{config.data.dataset_dir}: has no validation split; set evaluation.every_steps=0, "
            "or build it again with split.fraction or split.documents"
        )
    task = kind_of(config).build_task(config, manifest)
    facts = read_facts(config.data.dataset_dir, manifest)
    return Run(Path(config.run_dir), manifest, facts, task, accumulation)


def build_engine(config: TrainingConfig, run: Run) -> Engine:
    """The model with seeded weights, its optimizer, and DeepSpeed around them."""
    torch.manual_seed(config.seed)
    with construction(config.engine):
        model = config.model.module.Model(config.model.config)
    if config.init_from:
        take_initial_weights(model, config, run.facts)
    num_parameters = count_parameters(model)
    if config.engine.sequence_parallel_size > 1:
        sequence_parallel.share_sequences(model, config.engine.sequence_parallel_size)
    apply_activation_checkpointing(
        model.blocks,
        config.engine.activation_checkpointing,
        every_n=config.engine.activation_checkpointing_every_n,
    )
    objective = Objective(model, run.task)
    compile_objective(objective, config.engine.compile)
    engine = Engine(
        objective,
        build_optimizer(model, config.optimizer),
        config.engine,
        micro_batch_size=config.batch.micro_batch_size,
        gradient_accumulation_steps=run.accumulation,
        ema_decay=config.ema.decay,
    )
    # Dropout differs between ranks, but not where these compute one residual stream.
    torch.manual_seed(config.seed + 1 + distributed.rank() // config.engine.tensor_parallel_size)
    batch = config.batch
    shares = _data_rank(config)[1]
    of = "ranks" if shares == distributed.world_size() else "groups of ranks that share sequences"
    if config.engine.tensor_parallel_size > 1:
        of = f"groups of {config.engine.tensor_parallel_size} ranks that share weights"
    say(
        f"{config.model.name} of {num_parameters:,} parameters on {distributed.world_size()} "
        f"{engine.device.type} ranks, ZeRO stage {config.engine.zero_stage}, "
        f"{config.engine.precision}; global batch {batch.global_batch_size} = "
        f"{batch.micro_batch_size} x {shares} {of} x {run.accumulation} accumulation"
    )
    return engine


def fit(config: TrainingConfig, run: Run, engine: Engine, watchdog: Watchdog) -> RunState:
    """Resume and train; once more each time that the run goes back to its last good checkpoint."""
    is_written = False
    while True:
        state = pass_over(run.dir, resume(config, run.dir, run.manifest, engine))
        with build_loader(config, run, state) as loader:
            trainer = build_trainer(config, run, engine, state, loader, watchdog)
            if distributed.is_rank_zero() and not is_written:  # nothing can refuse the config now
                keep_facts(run.facts, run.dir)
                (run.dir / checkpoint.CONFIG).write_text(configs.to_yaml(config))
            is_written = True
            try:
                return trainer.fit()
            except Rollback:
                config = replace(config, resume="required")


def build_loader(config: TrainingConfig, run: Run, state: RunState) -> Loader:
    """This rank's micro batches behind the samples that the run has seen."""
    rank, world_size = _data_rank(config)
    shares_lanes = config.batch.global_batch_size % config.data.num_lanes == 0
    kind = kind_of(config)
    dataset = kind.open_split(
        config,
        run.manifest,
        split="train",
        ranks_per_lane_set=world_size if shares_lanes else 1,
    )
    epochs = config.num_steps * config.batch.global_batch_size / len(dataset)
    say(
        f"{config.data.dataset_dir}: {len(dataset):,} {kind.describe_samples(config)}; "
        f"{config.num_steps:,} steps are {epochs:.2f} epochs"
    )
    return Loader(
        dataset,
        collate=_collate(config, run),
        samples_seen=state.samples_seen,
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        rank=rank,
        world_size=world_size,
        num_batches_ahead=config.data.num_batches_ahead,
    )


def _data_rank(config: TrainingConfig) -> tuple[int, int]:
    """Which share of the samples is this rank's, of how many; some ranks have the same."""
    size = config.engine.ranks_per_sample
    return distributed.rank() // size, distributed.world_size() // size


def _collate(config: TrainingConfig, run: Run) -> Callable[[Any], dict[str, torch.Tensor]]:
    size = config.engine.sequence_parallel_size
    if size == 1:
        return run.task.collate  # type: ignore[no-any-return]
    return sequence_parallel.share_batch(run.task.collate, run.task.share, size)


def build_trainer(
    config: TrainingConfig,
    run: Run,
    engine: Engine,
    state: RunState,
    loader: Loader,
    watchdog: Watchdog,
) -> Trainer:
    """The loop with its schedule and hooks."""
    rate = partial(
        learning_rate,
        shape=config.schedule.shape,
        num_steps=config.num_steps,
        peak_learning_rate=config.optimizer.peak_learning_rate,
        warmup_steps=config.schedule.warmup_steps,
        decay_steps=config.schedule.decay_steps,
        min_learning_rate_ratio=config.schedule.min_learning_rate_ratio,
    )
    return Trainer(
        engine,
        loader,
        state=state,
        num_steps=config.num_steps,
        global_batch_size=config.batch.global_batch_size,
        learning_rate=rate,
        hooks=[watchdog, *_build_hooks(config, run, engine, state, loader)],
    )


def _build_hooks(
    config: TrainingConfig, run: Run, engine: Engine, state: RunState, loader: Loader
) -> list[Hook]:
    """In their order: a checkpoint comes last, so that it never claims what was not logged."""
    kind, events = kind_of(config), None
    if distributed.is_rank_zero():
        events = EventFile(run.dir, first_step=state.step + 1)
    metrics = MetricsHook(
        run.dir,
        events,
        every_steps=config.logging.every_steps,
        global_batch_size=config.batch.global_batch_size,
        unit=kind.UNIT,
        units_per_sample=kind.units_per_sample(config),
    )
    checkpoints = CheckpointHook(
        run.dir / "checkpoints",
        engine,
        config.checkpoints,
        config=configs.to_yaml(config),
        settle=metrics.settle,
    )
    anomalies = AnomalyHook(
        run.dir,
        config.anomalies,
        events,
        positions=loader.dataset.order.global_batch,
        origins=loader.dataset.origins,
        global_batch_size=config.batch.global_batch_size,
        publish=checkpoints.publish,
    )
    engine.admits = anomalies.admits
    hooks: list[Hook] = [metrics, _build_memory(config, run, engine, events), anomalies]
    if not is_local(config.data.dataset_dir):
        hooks.append(
            StoreHook(
                config.data.dataset_dir,
                loader.dataset.traffic,
                events,
                every_steps=config.logging.every_steps,
                device=engine.device,
            )
        )
    if config.evaluation.every_steps:
        hooks += _build_evaluations(config, run, engine, events)
    hooks += kind.build_hooks(config, run.manifest, run.task, engine, events)
    return [*hooks, _build_damage(config, hooks, engine, loader, events), checkpoints]


def _build_damage(
    config: TrainingConfig,
    hooks: Sequence[Hook],
    engine: Engine,
    loader: Loader,
    events: EventFile | None,
) -> DamageHook:
    """Of training, and of what the hooks before it read of the validation split."""
    validation = [hook.batches.damage for hook in hooks if isinstance(hook, EvaluationHook)]
    validation += [hook.validation.damage for hook in hooks if isinstance(hook, ProbeHook)]
    return DamageHook(
        Path(config.run_dir),
        {"train": [loader.dataset.damage], "validation": validation},
        events,
        every_steps=config.logging.every_steps,
        device=engine.device,
    )


def _build_memory(
    config: TrainingConfig, run: Run, engine: Engine, events: EventFile | None
) -> MemoryHook:
    """With a prediction, where there is a formula for the model and the task."""
    prediction = None
    with contextlib.suppress(ValueError):
        prediction = predict(config, Ranks(distributed.world_size(), engine.device.type))
    return MemoryHook(run.dir, events, prediction, device=engine.device)


def _build_evaluations(
    config: TrainingConfig, run: Run, engine: Engine, events: EventFile | None
) -> list[EvaluationHook]:
    """Of the weights and, if there is one, of their average."""
    rank, world_size = _data_rank(config)
    batches = EvaluationBatches(
        kind_of(config).open_split(config, run.manifest, split="validation"),
        collate=_collate(config, run),
        micro_batch_size=config.evaluation.micro_batch_size or config.batch.micro_batch_size,
        rank=rank,
        world_size=world_size,
        max_samples=config.evaluation.max_samples,
    )
    return [
        EvaluationHook(
            engine,
            batches,
            events,
            summarise=run.task.summarise,
            every_steps=config.evaluation.every_steps,
            run_dir=run.dir,
            averaged=averaged,
        )
        for averaged in ([False, True] if config.ema.decay else [False])
    ]
