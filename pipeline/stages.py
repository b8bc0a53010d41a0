"""The text pipeline as a table of contents: each line is a stage with a file of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import apache_beam as beam
import pyarrow as pa

from pipeline.config import TextPipelineConfig
from pipeline.corpus import Portion
from pipeline.decide import Terms, make_plan
from pipeline.encode import EncodeDocuments
from pipeline.key import KeyDocuments
from pipeline.listing import ListPortions, read_fingerprint
from pipeline.normalise import NormaliseText
from pipeline.progress import CountProgress
from pipeline.quality import FilterQuality
from pipeline.read import ReadCorpus
from pipeline.shards import ShardSettings, WriteShards
from pipeline.shuffle import GroupByShard
from pipeline.split import MarkValidation
from pipeline.work import WorkFolder


@dataclass
class ReadDocuments(beam.PTransform):  # type: ignore[misc]
    """Nothing -> batches of clean, filtered documents with keys."""

    config: TextPipelineConfig
    """Of the build."""
    listing: str
    """What to read, in the order of `spread_order`: place of the listing."""
    work: WorkFolder
    """Of the build."""

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        config = self.config
        quality = FilterQuality(thresholds=config.quality) if config.quality.enabled else KeepAll()
        return (
            start
            | "ListPortions" >> ListPortions(self.listing)
            | "ReadCorpus" >> ReadCorpus(format=config.corpus.name, config=config.corpus.config)
            | "MarkValidation" >> MarkValidation(config.split.validation_paths)
            | "NormaliseText"
            >> NormaliseText(
                unicode=config.normalise.unicode,
                control_characters=config.normalise.control_characters,
            )
            | "FilterQuality" >> quality
            | "KeyDocuments" >> KeyDocuments(deduplicate=config.deduplicate)
            | "CountProgress" >> CountProgress(self.work)
        )


@dataclass
class EncodedDocuments(beam.PTransform):  # type: ignore[misc]
    """Nothing -> batches of encoded documents, rows of `ENCODED`."""

    config: TextPipelineConfig
    """Of the build."""
    listing: str
    """What to read, in the order of `spread_order`: place of the listing."""
    work: WorkFolder
    """Of the build."""
    tokenizer: str
    """Place of the tokenizer.json in the work folder."""

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        named = self.config.tokenizer
        return (
            start
            | "ReadDocuments" >> ReadDocuments(self.config, self.listing, self.work)
            | "EncodeDocuments"
            >> EncodeDocuments(self.tokenizer, named.end_of_document, named.engine)
        )


@dataclass
class BuildShards(beam.PTransform):  # type: ignore[misc]
    """Batches of encoded documents -> names of finished shards in the work folder."""

    listing: str
    """The portions with their fingerprints."""
    terms: Terms
    """Of the plan of the shards."""
    settings: ShardSettings
    """What decides the bytes of a shard."""
    schema: pa.Schema
    """Of the encoded documents."""
    spills: bool
    """Payload through spill files instead of Beam's GroupByKey."""
    compare: beam.PTransform | None
    """What excludes documents by a look at all of them, if anything."""

    def expand(self, documents: beam.PCollection) -> beam.PCollection:
        return (
            documents
            | "GroupByShard"
            >> GroupByShard(
                work=self.terms.work,
                placement=self.terms.placement,
                fingerprint=partial(read_fingerprint, self.listing),
                make_plan=partial(make_plan, self.terms),
                schema=self.schema,
                spills=self.spills,
                compare=self.compare,
            )
            | "WriteShards" >> WriteShards(work=self.terms.work, settings=self.settings)
        )


@dataclass
class KeepAll(beam.PTransform):  # type: ignore[misc]
    """The place of a filter that is switched off."""

    def expand(self, documents: beam.PCollection) -> beam.PCollection:
        return documents


def spread_order(portions: Sequence[Portion], num_workers: int) -> list[Portion]:
    """Portions so ordered that dealing them out in turn gives every worker about as many bytes.

    Largest first, every second round backwards: 9 8 7 6 5 4 over two -> 9 8 6 7 5 4.
    """
    ranked = sorted(portions, key=lambda portion: (-portion.bytes, portion.index))
    rounds = [ranked[at : at + num_workers] for at in range(0, len(ranked), num_workers)]
    whole = [
        turn[:: -1 if i % 2 and len(turn) == num_workers else 1] for i, turn in enumerate(rounds)
    ]
    return [portion for turn in whole for portion in turn]
