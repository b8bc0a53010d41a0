"""A loader worker: decodes and augments images that it shares memory with; needs no torch.

`python -m training.data.decoding_worker SOCKET IMAGES PIXELS`, three file descriptors. It ends when
the other side of the socket does, so that none outlives a run that was killed; signals that stop a
run are for its ranks, which finish a step first.
"""

import mmap
import os
import signal
import sys
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from training.augment.recipe import Recipe, render


def main() -> None:
    """Answer each job with its faults, the pixels made, until there is nobody to answer."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    descriptor, images, shared = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    memory = mmap.mmap(-1, 1)
    try:
        while True:
            sizes, keys, recipe = connection.recv()
            shape = (len(sizes), recipe.size, recipe.size, 3)
            if len(memory) < (needed := len(sizes) * recipe.size**2 * 3):
                os.ftruncate(shared, needed)
                memory = mmap.mmap(shared, needed)
            pixels = np.ndarray(shape, np.uint8, memory)
            connection.send(decode(images, sizes, keys, recipe, pixels))
    except (EOFError, ConnectionError):
        return


def decode(
    images: int, sizes: list[int], keys: list[int], recipe: Recipe, pixels: npt.NDArray[np.uint8]
) -> dict[int, str]:
    """Fill pixels (images, size, size, 3); by number what is wrong with those that stay black."""
    faults, start = {}, 0
    for number, (size, key) in enumerate(zip(sizes, keys, strict=True)):
        try:
            pixels[number] = render(os.pread(images, size, start), recipe, key)
        except Exception as error:  # noqa: BLE001 - decoders raise whatever they like
            pixels[number] = 0
            faults[number] = f"{type(error).__name__}: {error}"
        start += size
    return faults


if __name__ == "__main__":
    main()
