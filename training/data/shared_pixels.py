"""Memory for pixels that loader workers write into and that then is the batch: nobody copies it.

Memory whose batch is gone is used again, for new memory costs a page fault every 4 KiB: with the
copy out of a worker's own it was a tenth of the time of a photograph.
"""

import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Segment:
    """Memory that other processes may map."""

    descriptor: int
    """Of a file in memory."""
    memory: mmap.mmap
    """The same, mapped here."""


class SharedPixels:
    """Hands out memory for pixels."""

    def __init__(self) -> None:
        self._free: list[Segment] = []

    def take(self, shape: tuple[int, ...]) -> tuple[Segment, Pixels]:
        """Pixels of a shape, their values anything, and the memory that they begin."""
        size = max(1, int(np.prod(shape)))
        segment = self._find(size) or _new(size)
        pixels: Pixels = np.ndarray(shape, np.uint8, segment.memory)
        # Views keep this array, a tensor made of it too: when it goes, nobody sees the memory.
        weakref.finalize(pixels, self._free.append, segment).atexit = False
        return segment, pixels

    def close(self) -> None:
        """Give back what no batch has."""
        self._find(0)

    def _find(self, size: int) -> Segment | None:
        """A free one of this size; those of others are given back."""
        while self._free:
            segment = self._free.pop()
            if len(segment.memory) == size:
                return segment
            os.close(segment.descriptor)
        return None


def _new(size: int) -> Segment:
    descriptor = os.memfd_create("pixels")
    os.ftruncate(descriptor, size)
    return Segment(descriptor, mmap.mmap(descriptor, size))
