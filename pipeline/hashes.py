"""Seeded stable hashes of document keys: the shuffle order and the split are functions of them.

splitmix64 of our own definition, vectorised, so that no library's update can change an order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

KEY_BYTES = 16
"""Length of a key: a 128-bit content hash."""

_SHUFFLE = 0x73687566666C65  # ASCII "shuffle": one seed gives unrelated orders and splits
_SPLIT = 0x73706C6974  # ASCII "split"


def shuffle_hashes(keys: pa.Array, seed: int) -> Hashes:
    """The place of each document in the global order; equal keys have equal hashes."""
    return _mix_keys(keys, seed, _SHUFFLE)


def split_hashes(keys: pa.Array, seed: int) -> Hashes:
    """What decides the split of each document; equal keys have equal hashes."""
    return _mix_keys(keys, seed, _SPLIT)


def key_halves(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """Keys as integers: (n, 2), the first eight bytes and the last eight, big-endian."""
    start = keys.offset * KEY_BYTES
    raw = memoryview(keys.buffers()[1])[start : start + len(keys) * KEY_BYTES]
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def key_bytes(keys: pa.Array) -> npt.NDArray[np.bytes_]:
    """Keys as they lie in memory, to compare and to search: in numpy's order as in Arrow's."""
    if not len(keys):
        return np.empty(0, f"S{KEY_BYTES}")
    raw = memoryview(keys.buffers()[1])[keys.offset * KEY_BYTES :]
    return np.frombuffer(raw, f"S{KEY_BYTES}", len(keys))


def find_sorted(held: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The place of each wanted value in an ascending array, -1 where it is not.

    By bisection: a few values in many, often; `np.isin` would sort the many every time.
    """
    places = np.searchsorted(held, wanted)
    known = places < len(held)
    known[known] = held[places[known]] == wanted[known]
    return np.where(known, places, -1).astype(np.int64)


def splitmix64(values: Hashes) -> Hashes:
    """One step of splitmix64: a bijection of 64-bit integers that spreads every bit."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _mix_keys(keys: pa.Array, seed: int, purpose: int) -> Hashes:
    if not len(keys):
        return np.empty(0, np.uint64)
    salt = splitmix64(np.array([(seed ^ purpose) % 2**64], np.uint64))
    halves = key_halves(keys)
    return splitmix64(splitmix64(halves[:, 0] ^ salt) ^ halves[:, 1])
