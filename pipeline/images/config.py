"""The config of an image build: what its stages are told."""

from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.config import PipelineConfig
from pipeline.images.process import Config as ProcessConfig


@dataclass(frozen=True)
class ImagePipelineConfig(PipelineConfig):
    """From a corpus of images to samples of one image each."""

    kind: ClassVar[str] = "image"
    """One image a sample."""
    libraries: ClassVar[tuple[str, ...]] = ("pillow",)
    """What decodes, resizes and encodes."""

    images: ProcessConfig = field(default_factory=ProcessConfig)
    """What becomes of each image."""
