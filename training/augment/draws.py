"""Random numbers of augmentations: a counter under a key, by our own splitmix64.

A number depends on (seed, position of the sample, purpose, how many were drawn before it) alone:
never on a rank, a loader worker, a library's generator or what other augmentations have drawn.
"""

import hashlib
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from training.data.order import Ints, Keys, fold, splitmix64

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
"""Step of the counter; Steele, Lea and Flood 2014."""


class Purpose(IntEnum):
    """What numbers are for, so that switching one augmentation changes no other."""

    CROP = 0
    FLIP = 1
    POLICY = 2
    ERASING = 3
    MIX = 4
    MASKING = 5
    SPANS = 6


class Draws:
    """The numbers of one sample for one purpose, in turn."""

    def __init__(self, key: int, purpose: Purpose) -> None:
        self._state = _mixed(key ^ (purpose + 1) * GAMMA & MASK)

    def bits(self) -> int:
        """64 bits."""
        self._state = (self._state + GAMMA) & MASK
        return _mixed(self._state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high): multiples of 2^-53."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def below(self, stop: int) -> int:
        """A whole number in [0, stop); its bias is below stop / 2^64."""
        return self.bits() * stop >> 64

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def pixels(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Independent uniform bytes, (height, width, 3)."""
        words = np.arange(-(-height * width * 3 // 8), dtype=np.uint64)
        noise = splitmix64(np.array([self.bits()], np.uint64) ^ words).astype("<u8")
        return noise.view(np.uint8)[: height * width * 3].reshape(height, width, 3)


class BatchDraws:
    """The numbers of many samples for one purpose: of each, those that `Draws` gives, (samples)."""

    def __init__(self, keys: Keys, purpose: Purpose) -> None:
        of_purpose = keys ^ np.uint64((purpose + 1) * GAMMA & MASK)
        self._states = splitmix64(of_purpose - np.uint64(GAMMA))  # which adds it, as `bits` wants

    def bits(self) -> Keys:
        """64 bits each."""
        bits = splitmix64(self._states)
        self._states += np.uint64(GAMMA)
        return bits

    def below(self, stop: int) -> Ints:
        """Whole numbers in [0, stop), `stop` below 2^32."""
        bits, low = self.bits(), np.uint64(32)
        carried = ((bits & np.uint64(2**32 - 1)) * np.uint64(stop)) >> low
        return (((bits >> low) * np.uint64(stop) + carried) >> low).astype(np.int64)

    def chance(self, probability: float) -> npt.NDArray[np.bool_]:
        """True with this probability."""
        return (self.bits() >> np.uint64(11)).astype(np.float64) * 2.0**-53 < probability


def sample_keys(seed: int, positions: Ints) -> Keys:
    """The key of each sample, which all its draws derive from; one hash, then one mix a sample."""
    digest = hashlib.sha256(f"millrace augment 1\n{seed}".encode()).digest()
    run = np.array([int.from_bytes(digest[:8], "little")], np.uint64)
    return fold(run, positions)


def uniforms(keys: Keys, purpose: Purpose, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) for each key: (keys, count), in a few calls for a whole batch."""
    own = splitmix64(keys ^ np.uint64((purpose + 1) * GAMMA & MASK))
    bits = splitmix64(own[:, None] ^ np.arange(count, dtype=np.uint64)[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(value: int) -> int:
    """The finaliser of splitmix64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)
