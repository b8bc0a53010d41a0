"""The stages of images between their reader and the shuffle."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.batch import Batch, Count, concat, count, encoded_rows, reject, text_buffers
from pipeline.images.clusters import sketch_rows
from pipeline.images.config import ImagePipelineConfig
from pipeline.images.process import Config, Outcome, Processed, process
from pipeline.images.rows import ENCODED_IMAGES, SAID
from pipeline.images.samples import render_metadata
from pipeline.images.sandbox import Limits, Sandbox
from pipeline.key import KeyDocuments
from pipeline.listing import ListPortions
from pipeline.progress import CountProgress
from pipeline.read import ReadCorpus
from pipeline.split import MarkValidation, carry_mark
from pipeline.tar import BLOCK
from pipeline.work import WorkFolder

STAGES = ("decode", "filter", "resize")
"""What processing may refuse an image in, in order."""


@dataclass
class EncodedImages(beam.PTransform):  # type: ignore[misc]
    """Nothing -> batches of images as the dataset holds them, rows of `ENCODED_IMAGES`."""

    config: ImagePipelineConfig
    """Of the build."""
    listing: str
    """What to read, in the order of `spread_order`: path of the listing."""
    work: WorkFolder
    """Of the build."""

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        corpus = self.config.corpus
        return (
            start
            | "ListPortions" >> ListPortions(self.listing)
            | "ReadCorpus" >> ReadCorpus(format=corpus.name, config=corpus.config)
            | "MarkValidation" >> MarkValidation(self.config.split.validation_paths)
            | "ProcessImages"
            >> ProcessImages(self.config.images, look=self.config.near_duplicates.enabled)
            | "KeyImages" >> KeyDocuments(deduplicate=self.config.deduplicate)
            | "CountProgress" >> CountProgress(self.work)
            | "PackImages" >> beam.Map(pack_images)
        )


@dataclass
class ProcessImages(beam.PTransform):  # type: ignore[misc]
    """Batches of images as stored -> as the dataset will hold them."""

    config: Config
    """What becomes of each image."""
    look: bool = False
    """Note the appearance of each image, in a column of that name."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        return batches | "InSandbox" >> beam.ParDo(_InSandbox(self.config, look=self.look))


class _InSandbox(beam.DoFn):  # type: ignore[misc]
    """Holds the child process that decodes."""

    def __init__(self, config: Config, *, look: bool) -> None:
        self.config = config
        self.look = look

    def setup(self) -> None:
        limits = self.config.decode
        self.sandbox = Sandbox(
            partial(process, config=self.config, look=self.look),
            Limits(limits.time_limit_seconds, limits.memory_mib),
        )

    def process(self, batch: Batch) -> Iterator[Batch]:
        yield process_images(batch, self.sandbox.map, look=self.look)

    def teardown(self) -> None:
        self.sandbox.close()


def process_images(
    batch: Batch,
    processed: Callable[[Sequence[memoryview]], list[Outcome]],
    *,
    look: bool = False,
) -> Batch:
    """The images of a batch as `processed` makes them, their size in the metadata.

    If `look`, with their packed appearance in a column of that name.
    """
    images = batch.documents
    results = processed(list(_contents(images)))
    for stage in STAGES:
        refused = [not isinstance(one, Processed) and one[0] == stage for one in results]
        denied = images.filter(pa.array(refused, pa.bool_()))
        images = images.filter(pa.array(~np.array(refused, np.bool_)))
        bad = [one[1] for one in results if not isinstance(one, Processed) and one[0] == stage]
        results = [one for one, out in zip(results, refused, strict=True) if not out]
        reasons, details = [one.reason for one in bad], [one.detail for one in bad]
        rejects = concat([batch.rejects, reject(denied, stage, reasons, details)])
        if stage == STAGES[-1]:
            done = [one for one in results if isinstance(one, Processed)]
            images = _with_results(images, done, look=look)
        batch = replace(count(batch, stage, images), rejects=rejects)
    return batch


def pack_images(batch: Batch) -> Batch:
    """Batches of keyed images -> rows of `ENCODED_IMAGES`; a shard is filled by bytes of the tar.

    A member takes its content, padded, and a header of 512 bytes.
    """
    images = batch.documents
    offsets, _ = text_buffers(images)
    sizes = np.diff(offsets)
    rows = encoded_rows(
        images, payload=images.column("image"), weight=sizes + 4 * BLOCK, size=sizes
    )
    columns = [*rows.columns, *(images.column(name) for name in SAID)]
    documents = carry_mark(images, pa.RecordBatch.from_arrays(columns, schema=ENCODED_IMAGES))
    num_images, num_bytes = images.num_rows, int(sizes.sum())
    entry = Count("pack", num_images, num_bytes, num_images, num_bytes)
    sketches = None
    if "appearance" in images.schema.names:
        weight = np.asarray(rows.column("weight"))
        seen = images.column("appearance").to_pylist()
        sketches = carry_mark(images, sketch_rows(images.column("key"), weight, seen))
    return replace(batch, documents=documents, counts=(*batch.counts, entry), sketches=sketches)


def _contents(images: pa.RecordBatch) -> Iterator[memoryview]:
    offsets, content = text_buffers(images)
    ends = offsets.tolist()
    for first, stop in zip(ends[:-1], ends[1:], strict=True):
        yield content.data[first:stop]


def _with_results(images: pa.RecordBatch, done: list[Processed], *, look: bool) -> pa.RecordBatch:
    metadata = [
        render_metadata(said, width=one.width, height=one.height)
        for said, one in zip(images.column("metadata").to_pylist(), done, strict=True)
    ]
    names = images.schema.names
    images = images.set_column(
        names.index("image"),
        images.schema.field("image"),
        pa.array([one.encoded for one in done], pa.large_binary()),
    )
    images = images.set_column(
        names.index("metadata"), images.schema.field("metadata"), pa.array(metadata, pa.string())
    )
    if not look:
        return images
    seen = pa.array([one.appearance for one in done], pa.binary())
    return images.append_column("appearance", seen)
