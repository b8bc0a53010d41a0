"""The config of an image build: what its stages are told."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.config import PipelineConfig


@dataclass(frozen=True)
class ImagePipelineConfig(PipelineConfig):
    """From a corpus of images to samples of one image each."""

    kind: ClassVar[str] = "image"
    """One image a sample."""
    libraries: ClassVar[tuple[str, ...]] = ("pillow",)
    """What decodes, resizes and encodes."""
