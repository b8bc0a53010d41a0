"""Stage: portions of the corpus -> batches of documents."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, Portion


@dataclass(slots=True, kw_only=True)
class ReadCorpus(beam.PTransform):  # type: ignore[misc]
    """Portions -> batches of about 4 MB; the last batch of each portion has `last` set."""

    format: str
    """Module of `pipeline/readers/` that reads the portions."""
    config: CorpusConfig
    """That module's own config."""

    def expand(self, portions: beam.PCollection) -> beam.PCollection:
        read = beam.FlatMap(read_portion, format=self.format, config=self.config)
        return portions | "ReadPortion" >> read.with_output_types(Batch)


def read_portion(portion: Portion, *, format: str, config: CorpusConfig) -> Iterator[Batch]:
    """The batches of a portion, read by the module `pipeline/readers/<format>.py`."""
    reader = importlib.import_module(f"pipeline.readers.{format}")
    batches: Iterator[Batch] = reader.read(portion, config)
    return batches
