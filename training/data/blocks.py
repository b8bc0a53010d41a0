"""The token blocks of one chunk: parsed from the bytes of the tar, read without a copy."""

import ast
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

TAR_BLOCK = 512
NPY_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, slots=True)
class Blocks:
    """The tokens of a chunk as one stream in pieces, and where documents start in the stream."""

    tokens: list[npt.NDArray[Any]]
    """Token blocks, one behind the other, on the bytes that were parsed."""
    starts: list[int]
    """Of each block in the stream, tokens."""
    document_starts: npt.NDArray[np.int64]
    """Offsets in the stream, ascending."""

    def copy_to(self, out: npt.NDArray[Any], rows: list[int], firsts: list[int]) -> None:
        """Fill these rows of `out` with the tokens that follow these offsets of the stream."""
        width = out.shape[1]
        for row, first in zip(rows, firsts, strict=True):
            block = bisect_right(self.starts, first) - 1
            offset = first - self.starts[block]
            piece = self.tokens[block][offset : offset + width]
            filled = len(piece)
            out[row, :filled] = piece
            while filled < width:
                block += 1
                piece = self.tokens[block][: width - filled]
                out[row, filled : filled + len(piece)] = piece
                filled += len(piece)

    def documents_in(
        self, firsts: npt.NDArray[np.int64], width: int
    ) -> list[npt.NDArray[np.int64]]:
        """For each offset, where in the `width` tokens that follow it documents start."""
        low = np.searchsorted(self.document_starts, firsts).tolist()
        high = np.searchsorted(self.document_starts, firsts + width).tolist()
        return [
            self.document_starts[a:b] - first
            for a, b, first in zip(low, high, firsts.tolist(), strict=True)
        ]


def parse_blocks(
    content: bytes | memoryview, *, dtype: np.dtype[Any], num_samples: int, num_tokens: int
) -> Blocks:
    """Parse the members `tokens.npy` and `docs.npy` of the samples in a run of tar bytes.

    Raises:
        ValueError: no such tar, or not the samples and tokens that the manifest says.
    """
    view = memoryview(content)
    tokens, starts, documents = [], [], []
    total = 0
    docs: npt.NDArray[Any] | None = None
    for name, member in _members(view):
        if name.endswith(".docs.npy"):
            docs = _parse_npy(member, name, np.dtype("<u4"))
        elif name.endswith(".tokens.npy"):
            block = _parse_npy(member, name, dtype)
            if docs is None:
                raise ValueError(f"member {name} has no docs.npy before it")
            if len(docs) and (docs[-1] >= len(block) or np.any(docs[1:] <= docs[:-1])):
                raise ValueError(f"document starts of {name} do not ascend within its tokens")
            tokens.append(block)
            starts.append(total)
            documents.append(docs.astype(np.int64) + total)
            total, docs = total + len(block), None
    if (len(tokens), total) != (num_samples, num_tokens):
        raise ValueError(
            f"holds {len(tokens)} samples and {total} tokens, "
            f"the manifest says {num_samples} and {num_tokens}"
        )
    return Blocks(tokens, starts, np.concatenate([np.empty(0, np.int64), *documents]))


def _members(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Name and content of the regular USTAR members in a run of tar bytes."""
    position = 0
    while position < len(view):
        header = bytes(view[position : position + TAR_BLOCK])
        start = position + TAR_BLOCK
        if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
            raise ValueError(f"no regular USTAR member at byte {position} of the chunk")
        size = int(header[124:136].rstrip(b"\0 "), 8)
        if start + size > len(view):
            raise ValueError(f"the member at byte {position} of the chunk is cut short")
        yield header[:100].rstrip(b"\0").decode("ascii"), view[start : start + size]
        position = start + -(-size // TAR_BLOCK) * TAR_BLOCK


def _parse_npy(member: memoryview, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A one-dimensional array of `dtype`, on the bytes of the member; never pickled objects."""
    if bytes(member[:8]) != NPY_MAGIC:
        raise ValueError(f"member {name} is no npy file of version 1.0")
    start = 10 + int.from_bytes(member[8:10], "little")
    found, length = _parse_npy_header(bytes(member[10:start]))
    if found != dtype.str or start + length * dtype.itemsize != len(member):
        raise ValueError(f"member {name} holds {length} x {found}, expected {dtype.str}")
    return np.frombuffer(member, dtype, count=length, offset=start)


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[str, int]:
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
        (length,) = fields["shape"]
        return str(fields["descr"]), int(length)
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no npy header of a one-dimensional array: {error}") from None
