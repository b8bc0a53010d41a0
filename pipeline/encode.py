"""The stage from text to tokens: the text goes, its tokens and its size stay."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import Batch, Count, encoded_rows, text_buffers
from pipeline.encoder import Encoder, load_encoder
from pipeline.shared_work import read_place
from pipeline.split import carry_mark

STAGE = "encode"


@dataclass
class EncodeDocuments(beam.PTransform):  # type: ignore[misc]
    """Batches of documents -> batches of rows of `ENCODED`: tokens, end of document included."""

    tokenizer: str
    """Place of a tokenizer.json that all workers see; one of 128,000 tokens would fill a job."""
    end_of_document: str
    """Special token behind every document."""
    engine: str = "fast"
    """`fast` or `reference`."""

    def expand(self, batches: beam.PCollection[Batch]) -> beam.PCollection[Batch]:
        encode = _Encode(self.tokenizer, self.end_of_document, self.engine)
        return batches | "EncodeDocuments" >> beam.ParDo(encode).with_output_types(Batch)


def encode_documents(batch: Batch, encoder: Encoder) -> Batch:
    """The batch with tokens in the place of text."""
    offsets, _ = text_buffers(batch.documents)
    num_bytes = int(offsets[-1] - offsets[0])
    tokens, bounds = encoder.encode_batch(batch.documents.column("text"))
    documents = encoded_rows(
        batch.documents,
        payload=_as_binary(tokens, bounds),
        weight=np.diff(bounds),
        size=np.diff(offsets),
    )
    documents = carry_mark(batch.documents, documents)
    entry = Count(STAGE, documents.num_rows, num_bytes, documents.num_rows, num_bytes)
    return replace(batch, documents=documents, counts=(*batch.counts, entry))


def _as_binary(tokens: npt.NDArray[Any], bounds: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Each document's tokens as one binary value, without a copy: sorted 10 times faster so."""
    offsets = np.asarray(bounds, np.int64) * tokens.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(tokens))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(bounds) - 1, buffers)


class _Encode(beam.DoFn):  # type: ignore[misc]
    """Loads the encoder once in a worker process."""

    def __init__(self, tokenizer: str, end_of_document: str, engine: str) -> None:
        self.arguments = (tokenizer, end_of_document, engine)

    def setup(self) -> None:
        self.encoder = _load(*self.arguments)

    def process(self, batch: Batch) -> Iterator[Batch]:
        yield encode_documents(batch, self.encoder)


@lru_cache(maxsize=1)
def _load(tokenizer: str, end_of_document: str, engine: str) -> Encoder:
    text = read_place(tokenizer).decode()
    return load_encoder(text, end_of_document=end_of_document, engine=engine)
