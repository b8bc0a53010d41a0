"""Runs on images: one image a sample, decoded and augmented by loader workers."""

from typing import Any

import numpy as np

from pipeline.manifest import Manifest
from training.augment.mix import check_pairs
from training.config import ImageTrainingConfig
from training.data.config import open_images
from training.data.images import ImageDataset
from training.engine import Engine
from training.events import EventFile
from training.hooks.pictures import PicturesHook
from training.trainer import Hook

UNIT = "images"


def build_task(config: ImageTrainingConfig, manifest: Manifest) -> Any:
    """The task for the classes of the dataset and the patches of the model."""
    if manifest.kind != "image":
        where = config.data.dataset_dir
        raise ValueError(f"{where}: holds samples of kind {manifest.kind}, expected images")
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
    """Pictures of what the model sees and makes."""
    if not config.pictures.every_steps:
        return []
    split = "validation" if manifest.splits.get("validation") else "train"
    images = open_split(config, manifest, split=split)
    shown = np.arange(min(config.pictures.num_images, len(images)))
    batch = task.collate(images.read_in_file_order(shown))
    images.close()
    every_steps = config.pictures.every_steps
    return [PicturesHook(engine, task.pictures, batch, events, every_steps=every_steps)]
