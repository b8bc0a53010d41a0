"""The config of an image build: what its stages are told."""

from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.config import PipelineConfig
from pipeline.images.clusters import Config as NearDuplicatesConfig
from pipeline.images.process import Config as ProcessConfig


@dataclass(frozen=True)
class ImagePipelineConfig(PipelineConfig):
    """From a corpus of images to samples of one image each."""

    kind: ClassVar[str] = "image"
    """One image a sample."""
    libraries: ClassVar[tuple[str, ...]] = ("pillow", "simplejpeg", "cykooz-resizer")
    """What decodes, resizes and encodes."""

    images: ProcessConfig = field(default_factory=ProcessConfig)
    """What becomes of each image."""
    near_duplicates: NearDuplicatesConfig = field(default_factory=NearDuplicatesConfig)
    """Keep one of images that look the same, beside what `deduplicate` does with true copies."""

    @property
    def resources(self) -> tuple[str, ...]:
        """Those of the corpus, as names of classes."""
        resources: tuple[str, ...] = self.corpus.config.resources
        return resources

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_duplicates.enabled and not self.deduplicate:
            raise ValueError(
                "near_duplicates.enabled=true with deduplicate=false: copies are near-duplicates "
                "too; leave deduplicate at true, or near_duplicates.enabled at false"
            )
