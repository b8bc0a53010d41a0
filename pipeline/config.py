"""The config of a build: everything that `python -m pipeline CONFIG` can be told."""

import importlib
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from configs import to_dict
from configs.plugins import Plugin, plugin, plugin_names
from configs.redact import redact
from pipeline.normalise import Config as NormaliseConfig
from pipeline.quality import Config as GopherConfig
from pipeline.split import SplitConfig
from pipeline.tokenizer import Config as TokenizerConfig
from pipeline.urls import is_local, local_path

MAX_WORKERS = 1024
"""More than any machine has cores; Beam takes any number, and waits for it without end."""
MIN_MIB = 0.01
"""A tar is padded to 10,240 bytes: a smaller shard would be no smaller file."""
MIN_BLOCK_TOKENS = 1024
"""A sample has 3 KiB of headers and padding beside its tokens, which at 1,024 tokens of two bytes
is more than they are."""


@dataclass(frozen=True)
class ShardsConfig:
    """How the dataset is cut into files."""

    target_mib: float = 256.0
    """Wished size of a shard, MiB; a worker holds about four times this in memory."""
    chunk_mib: float = 8.0
    """Wished size of a chunk, the unit in which training reads and shuffles, MiB."""

    def __post_init__(self) -> None:
        for name in ("target_mib", "chunk_mib"):
            found = getattr(self, name)
            if not MIN_MIB <= found < math.inf:
                raise ValueError(f"{name}: {found}; a number of at least {MIN_MIB} is allowed")


@dataclass(frozen=True)
class TextShardsConfig(ShardsConfig):
    """How tokens are cut into files."""

    block_tokens: int = 262_144
    """Tokens in a block, the sample of a shard, at least 1024; a sequence may be longer or
    shorter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_tokens < MIN_BLOCK_TOKENS:
            raise ValueError(
                f"block_tokens: {self.block_tokens}; at least {MIN_BLOCK_TOKENS} are allowed, "
                "below which a dataset is mostly headers"
            )


@dataclass(frozen=True, kw_only=True)
class QualityConfig(GopherConfig):
    """The quality filter and its switch."""

    enabled: bool = True
    """false: all documents pass."""


@dataclass(frozen=True)
class PipelineConfig:
    """From a corpus to a dataset: what builds of every kind are told."""

    kind: ClassVar[str]
    """Of the samples: text or image."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions in whose hands the bytes are, beside those of every build."""

    dataset_dir: str
    """Folder of the dataset, which is made if it does not exist, or URL in a store, as
    s3://BUCKET/PREFIX."""
    corpus: Plugin = plugin("pipeline.readers", selector="format")
    """What is read; its format decides whether the dataset is of text or of images."""
    deduplicate: bool = True
    """Keep one of records whose content is equal: normalised text, or the image as stored."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Which documents are kept for validation."""
    shuffle_seed: int = 0
    """Another seed gives another order of documents."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """How the dataset is cut into files."""
    scratch_dir: str = "scratch"
    """Local folder in which the build of a dataset in a store works, on an engine the machine that
    submits; what it puts there is removed at the end. A dataset on a disk needs none."""
    num_workers: int = 0
    """Worker processes on this machine; 0 for one per core. Does not change a byte."""
    max_bad_fraction: float = 0.01
    """Share of records that may be unreadable before the build fails, after reading and before
    writing. Not 0: one broken line must not kill a job of days; every one is in rejects/."""

    def __post_init__(self) -> None:
        _check_place(self.dataset_dir)
        if ":/" in self.scratch_dir:
            raise ValueError(f"scratch_dir: {redact(self.scratch_dir)}; a local folder is needed")
        if not 0 <= self.num_workers <= MAX_WORKERS:
            raise ValueError(f"num_workers: {self.num_workers}; 0 to {MAX_WORKERS} are allowed")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction: {self.max_bad_fraction}; 0 to 1 are allowed")

    @property
    def growth(self) -> float:
        """Bytes written for a byte read, at most, about: in spill files and in shards, whose tars
        add 2 kB to an image: it holds for images of 4 kB and more.
        """
        return 2.6

    @property
    def resources(self) -> tuple[str, ...]:
        """Files that decide bytes beside those of the corpus."""
        return ()

    @classmethod
    def variants(cls) -> "dict[str, type[PipelineConfig]]":
        """The schema of each kind."""
        return {"text": TextPipelineConfig, "image": image_config()}

    @classmethod
    def variant(cls, tree: dict[str, Any]) -> "type[PipelineConfig]":
        """The schema for a config, by the format of its corpus."""
        corpus = tree.get("corpus")
        name = str(corpus.get("format")) if isinstance(corpus, dict) else ""
        known = name in plugin_names("pipeline.readers")
        kind = importlib.import_module(f"pipeline.readers.{name}").KIND if known else "text"
        return cls.variants()[kind]


@dataclass(frozen=True)
class TextPipelineConfig(PipelineConfig):
    """From a corpus of text to token blocks."""

    kind: ClassVar[str] = "text"
    """Token blocks."""
    libraries: ClassVar[tuple[str, ...]] = ("fastokens", "tokenizers")
    """What makes tokens."""

    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    """How text is cleaned."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Which documents are good enough: the Gopher rules."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """What makes tokens of text."""
    shards: TextShardsConfig = field(default_factory=TextShardsConfig)
    """How the dataset is cut into files."""

    @property
    def growth(self) -> float:
        """Tokens twice, and 100 bytes for the place of a document: it holds for documents of 100
        bytes and more. A token is two bytes, or four of a large vocabulary, for 4 to 5 of text.
        """
        return {"train": 1.8, "load": 2.8, "characters": 4.8}[self.tokenizer.kind]

    @property
    def resources(self) -> tuple[str, ...]:
        """The tokenizer, where it is loaded."""
        return (self.tokenizer.path,) if self.tokenizer.path else ()


def _check_place(dataset_dir: str) -> None:
    """A URL is of one store, without credentials, which would come into files and logs."""
    if redact(dataset_dir) != dataset_dir:
        raise ValueError(
            f"dataset_dir must not hold credentials, found {redact(dataset_dir)}; give them as the "
            "tools of its store do, in the environment or in files"
        )
    path = str(local_path(dataset_dir))
    is_chain = "::" in path or ":/" in path
    if is_chain or not (is_local(dataset_dir) or path.strip("./")):
        raise ValueError(
            f"dataset_dir: {dataset_dir} is no place for a dataset; a local folder is allowed, or "
            "a URL as s3://BUCKET/PREFIX"
        )


def image_config() -> type[PipelineConfig]:
    """The schema of image builds, imported when it is asked for: a text build needs no Pillow."""
    from pipeline.images.config import ImagePipelineConfig

    return ImagePipelineConfig


def byte_config(config: PipelineConfig) -> dict[str, Any]:
    """The part of a config that decides the bytes of the dataset.

    Where things lie does not: the corpus counts by its files, the tokenizer by its sha256.
    """
    tree = to_dict(config)
    for key in ("dataset_dir", "scratch_dir", "num_workers", "max_bad_fraction"):
        del tree[key]
    del tree["corpus"]["path"]
    tree.get("tokenizer", {}).pop("path", None)
    if not tree["split"]["validation_paths"]:  # datasets that were built before it stay valid
        del tree["split"]["validation_paths"]
    return tree
