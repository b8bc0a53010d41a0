"""Whether a training config can start on this machine: what a run would refuse in its first minute,
and what it would find out after hours.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from training.batch_size import accumulation_steps
from training.config import TrainingConfig
from training.data.shards import load_manifest
from training.deepspeed_config import check_device
from training.doctor.finding import Finding
from training.objective import count_parameters

CHECKPOINT_BYTES = 14
"""A parameter in a checkpoint: 2 of the weights in bf16, 4 of the master, 8 of the moments; fp32
takes 16."""


def check_config(config: TrainingConfig, num_ranks: int) -> Iterator[Finding]:
    """Dataset, batch, device and the space that checkpoints need."""
    yield _attempt("dataset", lambda: _describe_dataset(config))
    yield _attempt("batch", lambda: _describe_batch(config, num_ranks))
    yield _attempt("precision", lambda: _describe_device(config))
    yield _checkpoint_space(config)


def _attempt(what: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", what, describe())
    except (ValueError, OSError) as error:
        return Finding("fault", what, str(error))


def _describe_dataset(config: TrainingConfig) -> str:
    manifest = load_manifest(config.data.dataset_dir)
    splits = {name: sum(s.samples for s in shards) for name, shards in manifest.splits.items()}
    text = ", ".join(f"{name} {samples:,} samples" for name, samples in splits.items())
    return f"{config.data.dataset_dir}: {text}"


def _describe_batch(config: TrainingConfig, num_ranks: int) -> str:
    size = config.engine.ranks_per_sample
    shares = num_ranks // size
    accumulation = accumulation_steps(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        world_size=max(shares, 1),
    )
    micro = config.batch.micro_batch_size
    of = "ranks" if size == 1 else f"groups of {size} ranks"
    return f"{config.batch.global_batch_size} = {micro} x {shares} {of} x {accumulation}"


def _describe_device(config: TrainingConfig) -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(config.engine, device, computes_fp16=device == "cuda")
    return f"{config.engine.precision} on {device}"


def _checkpoint_space(config: TrainingConfig) -> Finding:
    """One more than are kept is there while the newest is written."""
    with torch.device("meta"):
        model = config.model.module.Model(config.model.config)
    parameters = count_parameters(model)
    per_parameter = 16 if config.engine.precision == "fp32" else CHECKPOINT_BYTES
    kept = config.checkpoints.keep or math.inf
    one_gib = parameters * per_parameter / 2**30
    text = f"{parameters:,} parameters, about {one_gib:.1f} GiB each"
    if kept is math.inf:
        return Finding("note", "checkpoints", f"{text}; checkpoints.keep=0 keeps all of them")
    folder = Path(config.run_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free_gib = shutil.disk_usage(folder).free / 2**30
    needed_gib = one_gib * (kept + 1)
    return Finding(
        "fault" if needed_gib > free_gib else "ok",
        "checkpoints",
        f"{text}, {needed_gib:.1f} at most of {free_gib:.0f} GiB free",
    )
