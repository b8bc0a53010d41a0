"""Stage: portions of the corpus -> batches of documents."""

import importlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, Portion
from pipeline.refused import RefusedError


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
    """The batches of a portion, read by the module `pipeline/readers/<format>.py`.

    Raises:
        RefusedError: a file of the corpus is not on this machine.
    """
    reader = importlib.import_module(f"pipeline.readers.{format}")
    try:
        yield from reader.read(portion, config)
    except FileNotFoundError as error:
        if error.filename is None:  # of a URL, which the error names
            raise
        raise RefusedError(
            f"a worker on {socket.gethostname()} does not see {error.filename}, which was there "
            "when the corpus was listed: workers need it at the same path, or at a URL"
        ) from None
