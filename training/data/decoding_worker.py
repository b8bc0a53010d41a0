"""A loader worker: decodes and augments images that come over a socket; needs no torch.

`python -m training.data.decoding_worker FD`. It ends when the other side of the socket does, so
that none outlives a run that was killed.
"""

import sys
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from training.augment.recipe import Recipe, render


def main() -> None:
    """Answer each job with its pixels and faults, until there is nobody to answer."""
    connection = Connection(int(sys.argv[1]))
    try:
        while True:
            pixels, faults = decode(*connection.recv())
            connection.send(faults)
            connection.send_bytes(pixels.data.cast("B"))  # one dimension: its length is sent
    except (EOFError, ConnectionError):
        return


def decode(
    encoded: list[bytes], keys: list[int], recipe: Recipe
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    """Pixels (images, size, size, 3), and by number what is wrong with those that stay black."""
    pixels = np.zeros((len(encoded), recipe.size, recipe.size, 3), np.uint8)
    faults = {}
    for number, (image, key) in enumerate(zip(encoded, keys, strict=True)):
        try:
            pixels[number] = render(image, recipe, key)
        except Exception as error:  # noqa: BLE001 - decoders raise whatever they like
            faults[number] = f"{type(error).__name__}: {error}"
    return pixels, faults


if __name__ == "__main__":
    main()
