"""A loader worker: decodes and augments images that it shares memory with; needs no torch.

`python -m training.data.decoding_worker SOCKET IMAGES`, two file descriptors; that of the memory
for pixels comes with each job. It ends when the other side of the socket does, so that none
outlives a run that was killed; signals that stop a run are for its ranks, which finish a step
first.
"""

import math
import mmap
import os
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import numpy as np
import numpy.typing as npt

from training.augment.recipe import Renderer


def main() -> None:
    """Answer each job with its faults, the pixels made, until there is nobody to answer."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    descriptor, images = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    try:
        while True:
            sizes, keys, recipe, offset = connection.recv()
            shared = recv_handle(connection)
            pixels = _map(shared, (len(sizes), recipe.size, recipe.size, 3), offset)
            os.close(shared)
            encoded = os.pread(images, sum(sizes), 0)
            connection.send(decode(encoded, sizes, Renderer(recipe, keys), pixels))
    except (EOFError, ConnectionError):
        return


def _map(descriptor: int, shape: tuple[int, ...], offset: int) -> npt.NDArray[np.uint8]:
    """Pixels in a file in memory, from an offset on, bytes; mapped at once, not page by page."""
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    stop, flags = offset + math.prod(shape), mmap.MAP_SHARED | mmap.MAP_POPULATE
    memory = mmap.mmap(descriptor, stop - begin, flags=flags, offset=begin)
    return np.ndarray(shape, np.uint8, memory, offset - begin)


def decode(
    images: bytes, sizes: list[int], renderer: Renderer, pixels: npt.NDArray[np.uint8]
) -> dict[int, str]:
    """Fill pixels (images, size, size, 3); by number what is wrong with those that stay black."""
    encoded, faults, start = memoryview(images), {}, 0
    for number, size in enumerate(sizes):
        try:
            renderer.render(number, encoded[start : start + size], pixels[number])
        except Exception as error:  # noqa: BLE001 - decoders raise whatever they like
            pixels[number] = 0
            faults[number] = f"{type(error).__name__}: {error}"
        start += size
    return faults


if __name__ == "__main__":
    main()
