"""Runs on images: one image a sample, decoded and augmented by loader workers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.manifest import Manifest
from training import distributed
from training.attention_maps import look_at_image
from training.augment.mix import check_pairs
from training.config import ImageTrainingConfig
from training.data.config import open_images
from training.data.images import ImageDataset, Images
from training.data.loader import EvaluationBatches
from training.engine import Engine
from training.events import EventFile
from training.hooks.attention import build_attention_hook
from training.hooks.pictures import PicturesHook
from training.hooks.probe import ProbeHook
from training.objective import MicroBatch
from training.trainer import Hook

UNIT = "images"


def build_task(config: ImageTrainingConfig, manifest: Manifest) -> Any:
    """The task for the classes of the dataset and the patches of the model."""
    if manifest.kind != "image":
        where = config.data.dataset_dir
        raise ValueError(f"{where}: holds samples of kind {manifest.kind}, expected images")
    if config.probe.every_steps and not manifest.splits.get("validation"):
        where = config.data.dataset_dir
        raise ValueError(f"{where}: has no validation split to probe on; set probe.every_steps=0")
    if config.augment.mixes and not config.task.module.MIXES:
        keys = "augment.mixup_alpha and augment.cutmix_alpha"
        raise ValueError(f"task {config.task.name} mixes no images: {keys} must be 0")
    check_pairs(config.augment, micro_batch_size=config.batch.micro_batch_size)
    return config.task.module.Task(
        config.task.config, config.augment, classes=manifest.classes, model=config.model.config
    )


def open_split(
    config: ImageTrainingConfig, manifest: Manifest, *, split: str, ranks_per_lane_set: int = 1
) -> ImageDataset:
    """The images of a split, augmented if it is that of training."""
    of = config.augment.recipe if split == "train" else config.augment.plain_recipe
    return open_images(
        config.data,
        manifest,
        split=split,
        recipe=of(config.model.config.image_size),
        seed=config.seed,
        ranks_per_lane_set=ranks_per_lane_set,
    )


def describe_samples(config: ImageTrainingConfig) -> str:
    """Their size."""
    size = config.model.config.image_size
    return f"images, taken at {size} x {size} pixels"


def units_per_sample(config: ImageTrainingConfig) -> int:
    """A sample is an image."""
    del config
    return 1


def build_hooks(
    config: ImageTrainingConfig,
    manifest: Manifest,
    task: Any,
    engine: Engine,
    events: EventFile | None,
) -> list[Hook]:
    """Pictures of what the model sees, makes and looks at, and the probe."""
    hooks: list[Hook] = []
    if config.pictures.every_steps:
        hooks.append(_build_pictures(config, manifest, task, engine, events))
    if config.attention.every_steps:
        hooks.append(_build_attention(config, manifest, task, engine, events))
    if config.probe.every_steps:
        hooks += _build_probes(config, manifest, task, engine, events)
    return hooks


def _build_pictures(
    config: ImageTrainingConfig,
    manifest: Manifest,
    task: Any,
    engine: Engine,
    events: EventFile | None,
) -> PicturesHook:
    split, number = config.task.module.SHOWN, config.pictures.num_images
    batch = task.collate(_first_images(config, manifest, number, split=split))
    every_steps = config.pictures.every_steps
    return PicturesHook(engine, task.pictures, batch, events, every_steps=every_steps)


def _build_attention(
    config: ImageTrainingConfig,
    manifest: Manifest,
    task: Any,
    engine: Engine,
    events: EventFile | None,
) -> PicturesHook:
    def look(model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        image = batch["pixels"][0].cpu()
        return look_at_image(model, image, task.pixels(batch), with_rollout=True)

    batch = _with_classes(_first_images(config, manifest, 1))
    return build_attention_hook(engine, look, batch, events, config.attention)


def _build_probes(
    config: ImageTrainingConfig,
    manifest: Manifest,
    task: Any,
    engine: Engine,
    events: EventFile | None,
) -> list[ProbeHook]:
    """Of the weights and, if there is one, of their average."""

    def embed(batch: MicroBatch) -> Tensor:
        vectors: Tensor = engine.module.embed(task.pixels(batch))  # type: ignore[operator]
        return vectors

    train, validation = (
        _plain_batches(config, manifest, split) for split in ("train", "validation")
    )
    return [
        ProbeHook(
            engine,
            train,
            validation,
            events,
            config.probe,
            embed=embed,
            run_dir=Path(config.run_dir),
            averaged=averaged,
        )
        for averaged in ([False, True] if config.ema.decay else [False])
    ]


def _first_images(
    config: ImageTrainingConfig, manifest: Manifest, number: int, *, split: str = "validation"
) -> Images:
    """Of a split, or, where there is none, of that of training: as they are augmented there."""
    split = split if manifest.splits.get(split) else "train"
    images = open_split(config, manifest, split=split)
    first = images.read_in_file_order(np.arange(min(number, len(images))))
    images.close()
    return first


def _plain_batches(
    config: ImageTrainingConfig, manifest: Manifest, split: str
) -> EvaluationBatches:
    """This rank's share of the first images of a split, as in validation."""
    images = open_images(
        config.data,
        manifest,
        split=split,
        recipe=config.augment.plain_recipe(config.model.config.image_size),
        seed=config.seed,
    )
    return EvaluationBatches(
        images,
        collate=_with_classes,
        micro_batch_size=config.evaluation.micro_batch_size or config.batch.micro_batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        max_samples=config.probe.max_samples,
    )


def _with_classes(images: Images) -> MicroBatch:
    """8-bit pixels (B, Y, X, C), classes and weights (B), whatever the task is."""
    return {
        "pixels": torch.from_numpy(images.pixels),
        "classes": torch.from_numpy(images.classes),
        "weights": torch.from_numpy(images.weights.astype("float32")),
    }
