"""The images of one chunk: where they lie in the bytes of the tar, and their classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.tar import BLOCK, members

Ints = npt.NDArray[np.int64]

EXTENSIONS = frozenset({"jpg", "png", "webp"})
"""Of images in a dataset."""
NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """Some images, as stored."""

    content: memoryview
    """The bytes of the chunk."""
    starts: Ints
    """Of each image, its first byte."""
    stops: Ints
    """Of each image, the byte behind its last."""
    classes: Ints
    """Of each image, its class, or `NO_CLASS`."""

    def __len__(self) -> int:
        return len(self.starts)

    def encoded(self, numbers: Ints) -> list[memoryview]:
        """The stored bytes of some images."""
        bounds = zip(self.starts[numbers].tolist(), self.stops[numbers].tolist(), strict=True)
        return [self.content[start:stop] for start, stop in bounds]

    def key(self, number: int) -> str:
        """The key of an image."""
        header = self.content[self.starts[number] - BLOCK :][:100]
        return bytes(header).split(b"\0")[0].decode("ascii").split(".")[0]


def parse_images(content: bytes | memoryview, num_samples: int, num_tokens: int) -> ImageChunk:
    """Find the images of a run of tar bytes, which holds no tokens.

    Raises:
        ValueError: no such tar, or not the samples that the manifest says.
    """
    del num_tokens
    places: list[tuple[int, int]] = []
    classes: list[int] = []
    key, of_key = "", NO_CLASS
    for name, start, member in members(memoryview(content)):
        stem, _, extension = name.partition(".")
        if stem != key:
            key, of_key = stem, NO_CLASS
        if extension == "cls":  # comes before the image: members are sorted
            of_key = _class(member, name)
        elif extension in EXTENSIONS:
            places.append((start, start + len(member)))
            classes.append(of_key)
    if len(places) != num_samples:
        raise ValueError(f"holds {len(places)} images, the manifest says {num_samples}")
    bounds: npt.NDArray[Any] = np.array(places, np.int64).reshape(-1, 2)
    return ImageChunk(
        content=memoryview(content),
        starts=bounds[:, 0],
        stops=bounds[:, 1],
        classes=np.array(classes, np.int64),
    )


def _class(member: memoryview, name: str) -> int:
    text = bytes(member)
    if not text.isdigit():
        raise ValueError(f"member {name} holds {text[:20]!r}, expected the number of a class")
    return int(text)
