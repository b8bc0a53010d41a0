"""The token blocks of one chunk: parsed from the bytes of the tar, read without a copy."""

import ast
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.tar import members

Ints = npt.NDArray[np.int64]

NPY_MAGIC = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, slots=True)
class Blocks:
    """The tokens of a chunk as one stream in pieces, and where documents start in the stream."""

    words: npt.NDArray[Any]
    """The bytes that were parsed, as an array of the type of the tokens."""
    places: Ints
    """Index in `words` of the first token of each block."""
    starts: Ints
    """Offset in the stream of the first token of each block, then the length of the stream."""
    document_starts: Ints
    """Offsets in the stream, ascending."""

    def copy_to(self, out: npt.NDArray[Any], rows: Ints, firsts: Ints) -> None:
        """Fill these rows of `out` with the tokens that follow these offsets of the stream."""
        width, word = out.shape[1], self.words.itemsize
        block = np.searchsorted(self.starts, firsts, side="right") - 1
        places = self.places[block] + firsts - self.starts[block]
        shape = (max(0, len(self.words) - width + 1), width)
        windows = np.ndarray(shape, self.words.dtype, self.words, strides=(word, word))
        whole = firsts + width <= self.starts[block + 1]
        if whole.all():
            out[rows] = windows[places]
            return
        out[rows[whole]] = windows[places[whole]]
        for row, first in zip(rows[~whole].tolist(), firsts[~whole].tolist(), strict=True):
            self._copy_across(out[row], first)

    def documents_in(self, firsts: Ints, width: int) -> list[Ints]:
        """For each offset, where in the `width` tokens that follow it documents start."""
        low = np.searchsorted(self.document_starts, firsts)
        counts = np.searchsorted(self.document_starts, firsts + width) - low
        stops = np.cumsum(counts)
        chosen = np.arange(counts.sum()) + np.repeat(low - (stops - counts), counts)
        offsets = self.document_starts[chosen] - np.repeat(firsts, counts)
        stop, count = stops.tolist(), counts.tolist()
        return [offsets[b - n : b] for b, n in zip(stop, count, strict=True)]

    def origins(self, firsts: Ints, width: int) -> dict[str, list[str]]:
        """Of the `width` tokens behind each offset: keys of their samples, with documents in them.

        Documents are the keys that the sample's provenance gives, as far as it does.
        """
        found: dict[str, list[str]] = {}
        samples = self._provenance()
        for first in firsts.tolist():
            low, high = np.searchsorted(self.starts, [first, first + width - 1], side="right") - 1
            for block in range(int(low), min(int(high), len(samples) - 1) + 1):
                key, documents = samples[block]
                inside = self._documents(block, len(documents), first, first + width)
                names = found.setdefault(key, [])
                names += [name for name in documents[inside] if name not in names]
        return found

    def _documents(self, block: int, number: int, first: int, stop: int) -> slice:
        """Which of the documents of a block lie in a stretch of the stream."""
        bounds = np.searchsorted(self.document_starts, self.starts[block : block + 2])
        starts = self.document_starts[bounds[0] : bounds[1]]
        continued = number - len(starts)  # 1 if the block begins inside of a document, else 0
        begin = int(np.searchsorted(starts, first, side="right")) - 1 + continued
        return slice(max(begin, 0), int(np.searchsorted(starts, stop)) + max(continued, 0))

    def _provenance(self) -> list[tuple[str, list[str]]]:
        """Key and documents of each block."""
        names: list[str] = []
        documents: dict[str, list[str]] = {}
        for name, _, member in members(self.words.view(np.uint8).data):
            key, _, extension = name.partition(".")
            if extension == "tokens.npy":
                names.append(key)
            elif extension == "json":
                documents[key] = list(map(str, json.loads(bytes(member)).get("documents", [])))
        return [(name, documents.get(name, [])) for name in names]

    def _copy_across(self, out: npt.NDArray[Any], first: int) -> None:
        """Fill `out` from a stretch of the stream that crosses from block to block."""
        filled = 0
        while filled < len(out):
            block = int(np.searchsorted(self.starts, first + filled, side="right")) - 1
            length = min(int(self.starts[block + 1]) - first - filled, len(out) - filled)
            place = int(self.places[block] + first + filled - self.starts[block])
            out[filled : filled + length] = self.words[place : place + length]
            filled += length


def block_parser(token_dtype: str) -> Callable[[bytes | memoryview, int, int], Blocks]:
    """What parses the chunks of a dataset with tokens of this type."""
    return partial(parse_blocks, dtype=np.dtype(token_dtype).newbyteorder("<"))


def parse_blocks(
    content: bytes | memoryview, num_samples: int, num_tokens: int, *, dtype: np.dtype[Any]
) -> Blocks:
    """Parse the members `tokens.npy` and `docs.npy` of the samples in a run of tar bytes.

    Raises:
        ValueError: no such tar, or not the samples and tokens that the manifest says.
    """
    places: list[int] = []
    lengths: list[int] = []
    documents: list[Ints] = []
    docs: npt.NDArray[Any] | None = None
    for name, start, member in members(memoryview(content)):
        if name.endswith(".docs.npy"):
            _, docs = _parse_npy(member, name, np.dtype("<u4"))
        elif name.endswith(".tokens.npy"):
            header, block = _parse_npy(member, name, dtype)
            if docs is None:
                raise ValueError(f"member {name} has no docs.npy before it")
            if len(docs) and (docs[-1] >= len(block) or np.any(docs[1:] <= docs[:-1])):
                raise ValueError(f"document starts of {name} do not ascend within its tokens")
            places.append((start + header) // dtype.itemsize)
            documents.append(docs.astype(np.int64) + sum(lengths))
            lengths.append(len(block))
            docs = None
    if (len(lengths), sum(lengths)) != (num_samples, num_tokens):
        raise ValueError(
            f"holds {len(lengths)} samples and {sum(lengths)} tokens, "
            f"the manifest says {num_samples} and {num_tokens}"
        )
    return Blocks(
        words=np.frombuffer(content, dtype),
        places=np.array(places, np.int64),
        starts=np.cumsum([0, *lengths], dtype=np.int64),
        document_starts=np.concatenate([np.empty(0, np.int64), *documents]),
    )


def _parse_npy(member: memoryview, name: str, dtype: np.dtype[Any]) -> tuple[int, npt.NDArray[Any]]:
    """A one-dimensional array of `dtype` and where in the member it begins; never objects."""
    if bytes(member[:8]) != NPY_MAGIC:
        raise ValueError(f"member {name} is no npy file of version 1.0")
    start = 10 + int.from_bytes(member[8:10], "little")
    found, length = _parse_npy_header(bytes(member[10:start]))
    if found != dtype.str or start + length * dtype.itemsize != len(member):
        raise ValueError(f"member {name} holds {length} x {found}, expected {dtype.str}")
    if start % dtype.itemsize:
        raise ValueError(f"member {name} begins its array at byte {start}, not a whole word")
    return start, np.frombuffer(member, dtype, count=length, offset=start)


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[str, int]:
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
        (length,) = fields["shape"]
        return str(fields["descr"]), int(length)
    except (SyntaxError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no npy header of a one-dimensional array: {error}") from None
