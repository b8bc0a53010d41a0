"""Memory for pixels that loader workers write into and that then is the batch: nobody copies it.

Memory whose batch is gone is used again, for new memory costs a page fault every 4 KiB.
"""

import mmap
import os
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Segment:
    """Memory that other processes may map."""

    descriptor: int
    """Of a file in memory; closed when the segment goes."""
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

    def _find(self, size: int) -> Segment | None:
        """A free one of this size; those of others are given back."""
        while self._free:
            segment = self._free.pop()
            if len(segment.memory) == size:
                return segment
        return None


def _new(size: int) -> Segment:
    descriptor = os.memfd_create("pixels")
    os.ftruncate(descriptor, size)
    segment = Segment(descriptor, mmap.mmap(descriptor, size))
    weakref.finalize(segment, os.close, descriptor)
    return segment
