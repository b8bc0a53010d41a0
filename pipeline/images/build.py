"""Builds of images: nothing has to be made first, and classes are known when all is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.decide import Decision
from pipeline.fingerprints import resources_fingerprint
from pipeline.images.config import ImagePipelineConfig
from pipeline.images.encode import EXTENSIONS
from pipeline.images.near_duplicates import FindNearDuplicates
from pipeline.images.rows import ENCODED_IMAGES
from pipeline.images.samples import ImageSamples
from pipeline.images.stages import EncodedImages
from pipeline.shared_work import place_of
from pipeline.work import WorkFolder, read_json


@dataclass(frozen=True, slots=True)
class ImageKind:
    """A build of images."""

    config: ImagePipelineConfig
    work: WorkFolder

    @property
    def fingerprint(self) -> str:
        """Of the names of classes, where a file has them."""
        return resources_fingerprint(self.config)

    @property
    def schema(self) -> pa.Schema:
        """Encoded images with what their corpus says of them."""
        return ENCODED_IMAGES

    @property
    def cutter(self) -> ImageSamples:
        """One image a sample."""
        corpus = self.config.corpus
        return ImageSamples(
            extension=EXTENSIONS[self.config.images.encode.format],
            members=corpus.module.members(corpus.config),
            classes=place_of(self.work, self.work.classes),
        )

    def target_weight(self, target_bytes: int) -> int:
        """Bytes of a shard."""
        return target_bytes

    def encoded(self, listing: str, work: WorkFolder) -> beam.PTransform:
        """Images, read, decoded, filtered, resized and encoded."""
        return EncodedImages(self.config, listing, work)

    def compare(
        self, work: WorkFolder, num_portions: int, records: str = ""
    ) -> beam.PTransform | None:
        """Near-duplicates."""
        config = self.config.near_duplicates
        return FindNearDuplicates(config, work, num_portions, records) if config.enabled else None

    def report_fields(self, work: WorkFolder) -> dict[str, Any]:
        """The clusters of near-duplicates."""
        asked = self.config.near_duplicates.enabled
        return {"near_duplicates": read_json(work.comparison)["summary"]} if asked else {}

    def manifest_fields(self, decision: Decision) -> dict[str, Any]:
        """The class map."""
        return {"classes": decision.classes}

    def write_beside(self, folder: Path) -> None:
        """Nothing lies beside the shards."""
