"""The config of a build: everything that `python -m pipeline CONFIG` can be told."""

import math
from dataclasses import dataclass, field
from typing import Any

from configs import to_dict
from configs.plugins import Plugin, plugin
from pipeline.normalise import Config as NormaliseConfig
from pipeline.quality import Config as GopherConfig
from pipeline.split import SplitConfig
from pipeline.tokenizer import Config as TokenizerConfig

LOCAL = "file://"
"""A URL of this machine's own files, which is taken for the path in it."""


@dataclass(frozen=True)
class ShardsConfig:
    """How the dataset is cut into files."""

    target_mib: float = 256.0
    """Wished size of a shard, MiB of tokens; a worker holds about three times this in memory."""
    block_tokens: int = 262_144
    """Tokens in a block, the sample of a shard; a sequence may be longer or shorter."""
    chunk_mib: float = 8.0
    """Wished size of a chunk, the unit in which training reads and shuffles, MiB."""

    def __post_init__(self) -> None:
        for name in ("target_mib", "block_tokens", "chunk_mib"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}; a number above 0 is allowed")


@dataclass(frozen=True, kw_only=True)
class QualityConfig(GopherConfig):
    """The quality filter and its switch."""

    enabled: bool = True
    """false: all documents pass."""


@dataclass(frozen=True)
class PipelineConfig:
    """From a corpus to a dataset."""

    dataset_dir: str
    """Local folder of the dataset; made if it does not exist."""
    corpus: Plugin = plugin("pipeline.readers", selector="format")
    """What is read."""
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    """How text is cleaned."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Which documents are good enough: the Gopher rules."""
    deduplicate: bool = True
    """Keep one of documents whose normalised text is equal."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Which documents are kept for validation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """What makes tokens of text."""
    shuffle_seed: int = 0
    """Another seed gives another order of documents."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """How the dataset is cut into files."""
    num_workers: int = 0
    """Worker processes on this machine; 0 for one per core. Does not change a byte."""
    max_bad_fraction: float = 0.01
    """Share of records that may be unreadable before the build fails, after reading and before
    writing. Not 0: one broken line must not kill a job of days; every one is in rejects/."""

    def __post_init__(self) -> None:
        if ":/" in self.dataset_dir.removeprefix(LOCAL):
            raise ValueError(
                f"dataset_dir: {self.dataset_dir} is a URL; a local folder is needed, copy the "
                "finished dataset to where it is wanted"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers: {self.num_workers}; 0 or more are allowed")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction: {self.max_bad_fraction}; 0 to 1 are allowed")


def byte_config(config: PipelineConfig) -> dict[str, Any]:
    """The part of a config that decides the bytes of the dataset.

    Where things lie does not: the corpus counts by its files, the tokenizer by its sha256.
    """
    tree = to_dict(config)
    for key in ("dataset_dir", "num_workers", "max_bad_fraction"):
        del tree[key]
    del tree["corpus"]["path"]
    del tree["tokenizer"]["path"]
    return tree
