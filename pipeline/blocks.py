"""Token blocks: the documents of a shard, one after another, cut into samples of equal length.

A block that begins in the middle of a document has no 0 in its `docs.npy`; what a trainer joins
across blocks is its own choice, since blocks follow each other in the shard without a gap.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.tar import Sample, encode_npy

KEY_DIGITS = 16
"""Of each document's key so many hex digits are kept as provenance."""


@dataclass(frozen=True, slots=True)
class TokenBlocks:
    """How the documents of a shard become samples."""

    token_dtype: str
    """uint16 or uint32."""
    block_tokens: int
    """Tokens in a block."""

    def samples(self, shard_name: str, documents: pa.RecordBatch) -> Iterator[Sample]:
        """The blocks of a shard from its documents, in order, as rows of `ENCODED`."""
        tokens, starts = _stream(documents, np.dtype(self.token_dtype))
        keys = [key.hex() for key in documents.column("key").to_pylist()]
        return cut_blocks(shard_name, tokens, starts, keys, block_tokens=self.block_tokens)


def cut_blocks(
    shard_name: str,
    tokens: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    keys: list[str],
    *,
    block_tokens: int,
) -> Iterator[Sample]:
    """Cut the token stream of a shard, in which document `i` begins at `starts[i]`, into samples.

    Tokens [a b . c d e .], starts [0 3], blocks of 4 -> [a b . c] docs [0 3], [d e .] docs [].
    """
    for index, first in enumerate(range(0, len(tokens), block_tokens)):
        stop = min(first + block_tokens, len(tokens))
        begin, end = (int(place) for place in np.searchsorted(starts, [first, stop]))
        continues = begin == len(starts) or starts[begin] != first
        yield Sample(
            key=f"{shard_name}-{index:06d}",
            files={
                "tokens.npy": encode_npy(tokens[first:stop]),
                "docs.npy": encode_npy((starts[begin:end] - first).astype(np.uint32)),
                "json": _render(keys[begin - continues : end], stop - first),
            },
            tokens=stop - first,
        )


def _render(keys: list[str], tokens: int) -> bytes:
    content = {"documents": [key[:KEY_DIGITS] for key in keys], "tokens": tokens}
    return json.dumps(content, separators=(",", ":")).encode()


def _stream(
    documents: pa.RecordBatch, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """All tokens, one document after another, and where each document starts."""
    column = documents.column("payload")
    offsets = np.frombuffer(column.buffers()[1], np.int64)
    offsets = offsets[column.offset : column.offset + len(column) + 1]
    content = memoryview(column.buffers()[2])[offsets[0] : offsets[-1]]
    return np.frombuffer(content, dtype), (offsets[:-1] - offsets[0]) // dtype.itemsize
