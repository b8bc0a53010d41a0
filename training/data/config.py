"""Section `data` of the training config, and the way from it to the samples of a split."""

import math
from dataclasses import dataclass, field
from typing import Literal

from configs.redact import redact
from pipeline.manifest import Manifest
from pipeline.urls import is_local
from training.augment.recipe import Recipe
from training.data.blocks import block_parser
from training.data.chunks import ChunkReader, Parse, Parsed
from training.data.image_chunks import parse_images
from training.data.images import ImageDataset
from training.data.order import Order
from training.data.store import StoreConfig
from training.data.tokens import TokenDataset


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section `data`: what datasets of every kind are told."""

    dataset_dir: str
    """Folder or fsspec URL of the dataset that `python -m pipeline` made."""
    shuffle_seed: int = 0
    """Seed of the data order."""
    num_lanes: int = 128
    """Places of the dataset that are read at once, 1 to 512; more mix better."""
    window: int = 64
    """Samples of a lane that are permuted together."""
    num_batches_ahead: int = 4
    """Steps whose micro batches wait ready on each rank."""
    num_loader_workers: int = 2
    """Loader workers of each rank: threads that fetch and verify chunks; for images also processes
    that decode and augment."""
    chunk_cache_mib: int = 2048
    """Memory of each rank for chunks of a remote dataset, MiB; local ones need none."""
    corrupt_chunks: Literal["stop", "replace"] = "stop"
    """What a chunk with a wrong checksum does: stop the run, or read the next good one instead."""

    store: StoreConfig = field(default_factory=StoreConfig)
    """How a dataset behind a URL is read."""

    def __post_init__(self) -> None:
        """Refuse counts below one, and credentials, which would stand in every file of the run."""
        if redact(self.dataset_dir) != self.dataset_dir:
            raise ValueError(
                f"dataset_dir must not hold credentials, found {redact(self.dataset_dir)}; give "
                "them by the environment: docs/object_storage.md"
            )
        for name in ("window", "num_batches_ahead", "num_loader_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 1 <= self.num_lanes <= 512:
            raise ValueError(f"num_lanes must be 1 to 512, found {self.num_lanes}")
        if self.chunk_cache_mib < 1:
            raise ValueError(f"chunk_cache_mib must be at least 1, found {self.chunk_cache_mib}")


@dataclass(frozen=True, kw_only=True)
class TextDataConfig(DataConfig):
    """Section `data` of runs on text."""

    sequence_length: int = 1024
    """Input tokens per sequence."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        super().__post_init__()
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, found {self.sequence_length}")


def open_tokens(
    config: TextDataConfig,
    manifest: Manifest,
    *,
    split: str,
    seed: int = 0,
    ranks_per_lane_set: int = 1,
) -> TokenDataset:
    """The sequences of a split; `seed` is that of what tasks draw.

    `ranks_per_lane_set` is the number of ranks that share the lanes: the world size where the
    global batch is a multiple of `num_lanes`, else 1.

    Raises:
        ValueError: no text, no such split, too short, shards that disagree with the manifest, or
            too little memory for the chunks of a remote dataset.
    """
    parse = block_parser(manifest.token_dtype or "uint16")
    reader = _open_reader(config, manifest, kind="text", split=split, parse=parse)
    dataset = TokenDataset(
        reader,
        split=split,
        sequence_length=config.sequence_length,
        fingerprint=manifest.fingerprint,
        seed=config.shuffle_seed,
        num_lanes=config.num_lanes,
        window=config.window,
        corrupt_chunks=config.corrupt_chunks,
    )
    dataset.draw_seed = seed
    _divide_memory(reader, dataset.order, config=config, sharing=ranks_per_lane_set)
    return dataset


def open_images(
    config: DataConfig,
    manifest: Manifest,
    *,
    split: str,
    recipe: Recipe,
    seed: int,
    ranks_per_lane_set: int = 1,
) -> ImageDataset:
    """The images of a split, each by the recipe; `seed` is that of the augmentations.

    Raises:
        ValueError: no images, no such split, shards that disagree with the manifest, or too little
            memory for the chunks of a remote dataset.
    """
    reader = _open_reader(config, manifest, kind="image", split=split, parse=parse_images)
    order = Order(
        reader.table.samples,
        fingerprint=manifest.fingerprint,
        seed=config.shuffle_seed,
        num_lanes=config.num_lanes,
        window=config.window,
    )
    _divide_memory(reader, order, config=config, sharing=ranks_per_lane_set)
    return ImageDataset(
        reader,
        order,
        recipe,
        seed=seed,
        num_loader_workers=config.num_loader_workers,
        corrupt_chunks=config.corrupt_chunks,
    )


def describe_order(config: DataConfig, manifest: Manifest) -> str:
    """All that the data order of a run depends on: a resume with another one would repeat samples.

    With it, and with the number of samples seen, every later sample is known.
    """
    cut = (
        f"sequence_length {config.sequence_length}, " if isinstance(config, TextDataConfig) else ""
    )
    return (
        f"dataset {manifest.fingerprint}, {cut}shuffle_seed {config.shuffle_seed}, "
        f"num_lanes {config.num_lanes}, window {config.window}"
    )


def is_order_of(order: str, manifest: Manifest) -> bool:
    """Whether a described order is one of this dataset."""
    return order.startswith(f"dataset {manifest.fingerprint}, ")


def _open_reader(
    config: DataConfig, manifest: Manifest, *, kind: str, split: str, parse: Parse[Parsed]
) -> ChunkReader[Parsed]:
    where = config.dataset_dir
    if manifest.kind != kind:
        raise ValueError(f"{where}: holds samples of kind {manifest.kind}, expected {kind}")
    if not manifest.splits.get(split):
        raise ValueError(f"{where}: no split {split}; it has {', '.join(sorted(manifest.splits))}")
    return ChunkReader(
        where,
        manifest.splits[split],
        parse=parse,
        cache_mib=config.chunk_cache_mib,
        num_loader_workers=config.num_loader_workers,
        store=config.store,
    )


def _divide_memory(
    reader: ChunkReader[Parsed], order: Order, *, config: DataConfig, sharing: int
) -> None:
    """Memory for what the lanes read at once, below which chunks would be fetched again and again;
    the rest is for those to come.
    """
    if is_local(config.dataset_dir):
        return
    table = reader.table
    rows_per_chunk = order.samples_per_epoch / len(table)
    per_lane = 1 + order.window / rows_per_chunk
    chunks = min(order.num_lanes / sharing * per_lane, len(table))
    mean_mib = float((table.stop - table.start).mean()) / (1 << 20)
    needed = math.ceil(chunks * mean_mib)
    if needed > config.chunk_cache_mib:
        raise ValueError(
            f"chunk_cache_mib={config.chunk_cache_mib} is too little: {order.num_lanes} lanes, "
            f"shared by {sharing} ranks, read about {chunks:.0f} chunks of {mean_mib:.1f} MiB at "
            f"once; use at least {needed} MiB, or fewer data.num_lanes"
        )
    reader.spare_bytes = (config.chunk_cache_mib - needed) << 20
