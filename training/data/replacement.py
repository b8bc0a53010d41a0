"""Chunks of samples asked for, with the next good chunk in the place of a corrupt one.

What is replaced is counted and named, for the run to tell.
"""

import logging
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from training.data.chunks import ChunkReader, CorruptChunkError

Ints = npt.NDArray[np.int64]
Parsed = TypeVar("Parsed")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Damage:
    """What of a split could not be read, as far as it was asked for."""

    num_replaced: int = 0
    """Samples of the data order that others came in the place of, each time that they did."""
    replaced: set[int] = field(default_factory=set)
    """Such samples of those that are read in file order, again and again: their numbers."""
    faults: dict[str, str] = field(default_factory=dict)
    """What is wrong with chunks, by number, and with images, by key."""

    def note(self, name: str, fault: str, *, warning: str) -> None:
        """Name something that is damaged, and warn of it once."""
        if name not in self.faults:
            self.faults[name] = fault
            logger.warning(warning)

    def __or__(self, other: "Damage") -> "Damage":
        """What either could not read, of one split."""
        return Damage(
            self.num_replaced + other.num_replaced,
            self.replaced | other.replaced,
            self.faults | other.faults,
        )


@dataclass(frozen=True, slots=True)
class Found(Generic[Parsed]):
    """Where samples are read from, a row each, and the chunks that hold them."""

    chunk: Ints
    """The chunk of each row."""
    index: Ints
    """The sample's index in it."""
    rows: dict[int, Ints]
    """Rows of each chunk, ascending."""
    chunks: dict[int, Parsed]
    """What the chunks hold."""


class ReplacingReader(Generic[Parsed]):
    """Reads chunks; a corrupt one stops the run, or is replaced if the run was told so."""

    def __init__(
        self, reader: ChunkReader[Parsed], samples_per_chunk: Ints, *, replaces: bool
    ) -> None:
        self.reader = reader
        self.damage = Damage()
        self.replaced: dict[int, int] = {}
        """Corrupt chunks, and those whose samples came in their place."""
        self._counts = samples_per_chunk
        self._replaces = replaces

    def find(self, chunk: Ints, index: Ints) -> Found[Parsed]:
        """The chunks of these samples, or of those that come in their place.

        Raises:
            CorruptChunkError: a chunk is not what the manifest says, and is not to be replaced.
            OSError: a chunk could not be read after several attempts.
        """
        while True:
            source, place = self._redirect(chunk, index)
            rows = _group(source)
            try:
                return Found(source, place, rows, self.reader.get(list(rows)))
            except CorruptChunkError as error:
                self._replace(error)

    def expect(self, chunk: Ints) -> None:
        """The chunks of samples that are asked for soon, in this order."""
        source = self._redirect(chunk, np.zeros_like(chunk))[0]
        distinct, firsts = np.unique(source, return_index=True)
        self.reader.expect(distinct[np.argsort(firsts)].tolist())

    def _redirect(self, chunk: Ints, index: Ints) -> tuple[Ints, Ints]:
        if not self.replaced:
            return chunk, index
        source = chunk.copy()
        for corrupt, good in self.replaced.items():
            source[chunk == corrupt] = good
        return source, index % self._counts[source]

    def _replace(self, error: CorruptChunkError) -> None:
        """Note the next good chunk for a corrupt one, and for those that it stood in for."""
        counts = self._counts
        following = ((error.chunk + step) % len(counts) for step in range(1, len(counts)))
        good = next((n for n in following if counts[n] and n not in self.replaced), None)
        if good is None or not self._replaces:
            raise error
        self.replaced[error.chunk] = good
        for corrupt, stand_in in self.replaced.items():
            if stand_in == error.chunk:
                self.replaced[corrupt] = good
        warning = f"{error}; the samples of chunk {good} come in its place"
        self.damage.note(f"chunk {error.chunk}", str(error), warning=warning)


def _group(values: Ints) -> dict[int, Ints]:
    """For each distinct value its rows, ascending."""
    order = np.argsort(values, kind="stable")
    distinct, begins = np.unique(values[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(order, begins[1:]), strict=True))
