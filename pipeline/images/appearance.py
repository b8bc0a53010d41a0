"""What an image looks like, in 1,048 bytes: perceptual hashes of it and its mirror, a thumbnail.

The hash is the usual one of 64 bits: 32 x 32 grey values, their cosine transform, the 8 x 8 lowest
frequencies against their median. In whole numbers, so that no machine's rounding changes a bit.
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image

SIDE = 32
"""Of the thumbnail, pixels."""
FREQUENCIES = 8
"""So many of each direction are in the hash."""

_HEAD = struct.Struct("<QQQ")
_SCALE = 2**14  # the sums stay below 2**47
_COSINES = np.rint(
    _SCALE * np.cos(np.outer(np.arange(FREQUENCIES), 2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE))
).astype(np.int64)
_MIRROR = (-1) ** np.arange(FREQUENCIES)  # what mirroring does to the horizontal frequencies


@dataclass(frozen=True, slots=True)
class Appearance:
    """By what near-duplicates are found and compared."""

    hash: int
    """64 bits, of which 32 are set where no frequencies are equal."""
    mirrored_hash: int
    """That of the mirror image."""
    pixels: int
    """Of the image as stored in the corpus."""
    thumbnail: bytes
    """Grey values, 32 x 32."""

    def pack(self) -> bytes:
        """In 1,048 bytes."""
        return _HEAD.pack(self.hash, self.mirrored_hash, self.pixels) + self.thumbnail

    @classmethod
    def unpack(cls, packed: bytes) -> "Appearance":
        """From the bytes of `pack`."""
        own, mirrored, pixels = _HEAD.unpack_from(packed)
        return cls(own, mirrored, pixels, packed[_HEAD.size :])


def appearance(pixels: npt.NDArray[np.uint8], stored_size: tuple[int, int]) -> Appearance:
    """The appearance of pixels (height, width, 3); `stored_size` is from before any scaling."""
    grey = PIL.Image.fromarray(pixels).convert("L")
    grey = grey.resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    values = np.asarray(grey)
    waves = _COSINES @ values.astype(np.int64) @ _COSINES.T
    return Appearance(
        hash=_bits(waves),
        mirrored_hash=_bits(waves * _MIRROR),
        pixels=stored_size[0] * stored_size[1],
        thumbnail=values.tobytes(),
    )


def _bits(waves: npt.NDArray[np.int64]) -> int:
    """Which of 64 numbers lie above their median, first number first."""
    ranked = np.sort(waves, axis=None)
    above = 2 * waves.ravel() > ranked[31] + ranked[32]
    return int.from_bytes(np.packbits(above).tobytes(), "big")
