"""The data order: a pure function from (fingerprint, seed, position) to epoch, chunk and sample.

A position counts the samples of all epochs, one epoch behind the other: the whole data state.
Chunks are permuted per epoch, the permuted stream is cut into equal lanes, each lane is permuted
inside windows, and consecutive positions take one sample from every lane in turn. Start-up costs
O(chunks), a seek costs the same anywhere.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

# What a key is for, so that no two permutations of a run share one.
CHUNKS, LANES, WINDOWS, PHASES = range(4)


class Places(NamedTuple):
    """Where samples are: three columns of one length."""

    epoch: Ints
    """Pass over the split, from 0."""
    chunk: Ints
    """Index in the split's chunks."""
    sample: Ints
    """Index in the chunk."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """What one epoch permutes."""

    chunks: Ints
    """Chunks in the epoch's order."""
    slots: Ints
    """Inverse of `chunks`: where each chunk stands."""
    stops: Ints
    """Samples of the stream before the end of each of `chunks`."""
    lane_starts: Ints
    """First sample of each lane in the stream."""


class Order:
    """The order of a split whose chunks hold `samples_per_chunk` samples; a chunk may hold none.

    There are `num_lanes` lanes, fewer if there are fewer samples; a window holds `window` samples.
    """

    def __init__(
        self,
        samples_per_chunk: npt.ArrayLike,
        *,
        fingerprint: str,
        seed: int,
        num_lanes: int = 128,
        window: int = 64,
    ) -> None:
        """Prepare the order.

        Raises:
            ValueError: there is no sample, or a count is out of its range.
        """
        self.samples_per_chunk: Ints = np.asarray(samples_per_chunk, np.int64)
        self.samples_per_epoch = int(self.samples_per_chunk.sum())
        if self.samples_per_epoch == 0 or self.samples_per_chunk.min() < 0:
            raise ValueError("an order needs at least one sample and no negative counts")
        if num_lanes < 1 or window < 1:
            raise ValueError(f"num_lanes {num_lanes} and window {window} must be at least 1")
        self.num_lanes = min(num_lanes, self.samples_per_epoch)
        self.window = window
        self._key = run_key(fingerprint, seed)
        shortest, longer = divmod(self.samples_per_epoch, self.num_lanes)
        self._lane_lengths = shortest + (np.arange(self.num_lanes) < longer).astype(np.int64)
        # A batch may straddle two epochs; it touches a few window rows, 128 x 64 indices each.
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)
        self._windows = lru_cache(maxsize=8)(self._build_windows)

    def locate(self, positions: Ints) -> Places:
        """Where the samples at these positions are, in the order given."""
        epoch, place = np.divmod(np.asarray(positions, np.int64), self.samples_per_epoch)
        chunk, sample = np.empty_like(place), np.empty_like(place)
        for number in np.unique(epoch).tolist():
            mine = epoch == number
            chunk[mine], sample[mine] = self._locate_in_epoch(number, place[mine])
        return Places(epoch, chunk, sample)

    def position_of(self, epoch: int, chunk: int, sample: int) -> int:
        """The position at which a sample comes in an epoch: the inverse of `locate`."""
        held = int(self.samples_per_chunk[chunk])
        if not 0 <= sample < held:
            raise ValueError(f"chunk {chunk} holds {held} samples; it has no sample {sample}")
        plan = self._epoch(epoch)
        slot = plan.slots[chunk]
        stream = int(plan.stops[slot]) - held + sample
        # No two lanes start together, so the last that starts at or before the sample holds it.
        starts = np.where(plan.lane_starts <= stream, plan.lane_starts, -1)
        lane = int(np.argmax(starts))
        window, offset = divmod(stream - int(plan.lane_starts[lane]), self.window)
        inside = np.flatnonzero(self._windows(epoch, window)[lane] == offset)[0]
        row = window * self.window + int(inside)
        return epoch * self.samples_per_epoch + row * self.num_lanes + lane

    def global_batch(self, samples_seen: int, global_batch_size: int) -> Ints:
        """The positions of the next global batch, row by row, lane by lane.

        Rank r of W takes the r-th of W equal runs of rows: it stays within few lanes and chunks.
        """
        positions = np.arange(samples_seen, samples_seen + global_batch_size, dtype=np.int64)
        lanes = positions % self.samples_per_epoch % self.num_lanes
        return positions[np.argsort(lanes, kind="stable")]

    def _locate_in_epoch(self, epoch: int, place: Ints) -> tuple[Ints, Ints]:
        plan = self._epoch(epoch)
        row, lane = np.divmod(place, self.num_lanes)
        window, offset = np.divmod(row, self.window)
        for number in np.unique(window).tolist():
            mine = window == number
            offset[mine] = self._windows(epoch, number)[lane[mine], offset[mine]]
        stream = plan.lane_starts[lane] + window * self.window + offset
        slot = np.searchsorted(plan.stops, stream, side="right")
        chunk = plan.chunks[slot]
        return chunk, stream - (plan.stops[slot] - self.samples_per_chunk[chunk])

    def _build_epoch(self, epoch: int) -> _Epoch:
        chunks = permutation(fold(self._key, CHUNKS, epoch), len(self.samples_per_chunk))
        slots = np.empty_like(chunks)
        slots[chunks] = np.arange(len(chunks))
        # The slices are dealt to the lanes at random: a global batch smaller than the number of
        # lanes would otherwise come from one stretch of a dataset of few chunks.
        slices = permutation(fold(self._key, LANES, epoch), self.num_lanes)
        lane_starts = np.empty_like(slices)
        lane_starts[slices] = np.cumsum(self._lane_lengths[slices]) - self._lane_lengths[slices]
        return _Epoch(chunks, slots, np.cumsum(self.samples_per_chunk[chunks]), lane_starts)

    def _build_windows(self, epoch: int, window: int) -> Ints:
        """The permutation of one window of every lane: (lanes, window), -1 behind a lane's end."""
        lanes = np.arange(self.num_lanes, dtype=np.uint64)
        offsets = np.arange(self.window, dtype=np.uint64)
        keys = fold(self._key, WINDOWS, epoch, window, lanes)
        hashes = splitmix64(keys[:, None] ^ offsets[None, :])
        beyond = offsets[None, :] >= (self._lane_lengths - window * self.window)[:, None]
        hashes[beyond] = np.iinfo(np.uint64).max  # stable sort: they come last, whatever ties
        return np.where(beyond, -1, np.argsort(hashes, axis=1, kind="stable"))


def permutation(key: Keys, size: int) -> Ints:
    """A permutation of `size` things: the stable order of their keyed hashes, which never tie."""
    return np.argsort(splitmix64(key ^ np.arange(size, dtype=np.uint64)), kind="stable")


def run_key(fingerprint: str, seed: int) -> Keys:
    """The key that all permutations of a dataset and seed derive from."""
    digest = hashlib.sha256(f"millrace order 1\n{fingerprint}\n{seed}".encode()).digest()
    return np.array([int.from_bytes(digest[:8], "little")], np.uint64)


def fold(key: Keys, *values: int | npt.NDArray[np.integer]) -> Keys:
    """A key for these values under `key`; arrays are folded elementwise."""
    for value in values:
        key = splitmix64(key ^ np.asarray(value).astype(np.uint64))
    return key


def splitmix64(values: Keys) -> Keys:
    """Steele, Lea and Flood's splitmix64 (2014), a bijection of 64 bits; overflow wraps."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
