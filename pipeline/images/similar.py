"""Which hashes lie near each other, and whether two thumbnails show the same: kernels.

Hashes that differ in at most r bits agree in one of any r + 1 bands that the bits are cut into. So
only hashes that share a band are compared; where many share one, their other bits are cut again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.images.appearance import SIDE

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
"""(n, 2): indices of pairs, the smaller first."""

HASH_BITS = 64
COMPARED_AT_ONCE = 1024
"""So many hashes are compared each with each; more are cut into bands first."""
MAX_CUTS = 3
"""Behind so many cuts hashes are compared each with each, however many there are."""
MIN_DEVIATION = 2.0
"""Standard deviation of the grey values of a thumbnail, below which there is nothing to compare."""

_CROPS = (0.975, 0.95, 0.925, 0.9)
_WEIGHTS = 16  # of an interpolated pixel, in all: whole numbers, whose sums are exact
_BLOCK = 256


def bands(radius: int, bits: tuple[int, ...] = tuple(range(HASH_BITS))) -> list[tuple[int, ...]]:
    """The bits cut into radius + 1 bands of about equal width."""
    edges = np.linspace(0, len(bits), radius + 2).astype(int).tolist()
    return [bits[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]


def band_values(hashes: Hashes, band: tuple[int, ...]) -> Hashes:
    """The bits of a band, all others 0."""
    return hashes & np.uint64(sum(1 << bit for bit in band))


def close_pairs(hashes: Hashes, radius: int, shared: tuple[int, ...] = ()) -> Pairs:
    """All pairs of hashes that differ in at most `radius` bits, sorted, each once.

    If a band is given, those that agree in it. Of n evenly spread hashes, with w bits to a band,
    about n^2 / 2 x ((radius + 1) / 2^w)^2 are compared; at the worst, where all agree in `MAX_CUTS`
    bands, n^2 / 2, in blocks of bounded memory.
    """
    bits = tuple(bit for bit in range(HASH_BITS) if bit not in shared)
    groups = equal_groups(band_values(hashes, shared))
    found = [
        pairs
        for group in groups
        for pairs in _close_pairs(hashes, group, radius, bits, MAX_CUTS - bool(shared))
    ]
    return np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0)


def resemblance(
    left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8], *, cropped: bool
) -> npt.NDArray[Any]:
    """How far thumbnails (n, 32, 32) show the same, pair by pair, -1 to 1; 0 of flat ones.

    Their correlation: as they are, and if `cropped` with up to a tenth of the one or the other cut
    off around, whichever is best. 10 and 200 us for a pair.
    """
    one, other = left.astype(np.float64), right.astype(np.float64)
    best = _correlation(one * _WEIGHTS**2, other * _WEIGHTS**2)
    for crop in map(_resampling, _CROPS if cropped else ()):
        best = np.maximum(best, _correlation(crop @ one @ crop.T, other * _WEIGHTS**2))
        best = np.maximum(best, _correlation(one * _WEIGHTS**2, crop @ other @ crop.T))
    flat = np.minimum(one.std(axis=(1, 2)), other.std(axis=(1, 2))) < MIN_DEVIATION
    return np.where(flat, 0.0, best)


def _close_pairs(
    hashes: Hashes, which: Pairs, radius: int, bits: tuple[int, ...], cuts: int
) -> list[Pairs]:
    """Pairs of `which`, indices into `hashes`, that may differ in `bits` only."""
    if len(which) <= COMPARED_AT_ONCE or not cuts or len(bits) <= radius:
        return _compare(hashes, which, radius)
    found = []
    for band in bands(radius, bits):
        others = tuple(bit for bit in bits if bit not in band)
        for group in equal_groups(band_values(hashes[which], band)):
            found += _close_pairs(hashes, which[group], radius, others, cuts - 1)
    # what several bands found is held once
    return [np.unique(np.concatenate(found), axis=0)] if found else []


def equal_groups(values: npt.NDArray[Any]) -> list[Pairs]:
    """Ascending indices of equal values, in groups of two or more."""
    order = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[order])) + 1
    return [group for group in np.split(order, edges) if len(group) > 1]


def _compare(hashes: Hashes, which: Pairs, radius: int) -> list[Pairs]:
    found = []
    chosen = hashes[which]
    for start in range(0, len(which), _BLOCK):
        block = chosen[start : start + _BLOCK, None]
        near = np.bitwise_count(block ^ chosen[None, start:]) <= radius
        left, right = np.nonzero(np.triu(near, 1))
        if len(left):
            found.append(np.stack([which[start:][left], which[start:][right]], axis=1))
    return found


def _correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of each pair; all sums are whole numbers below 2^53, so in whatever order they are added."""
    count = SIDE * SIDE
    sums = one.sum(axis=(1, 2)), other.sum(axis=(1, 2))
    both = count * np.einsum("nyx,nyx->n", one, other) - sums[0] * sums[1]
    squares = [
        count * np.einsum("nyx,nyx->n", each, each) - total * total
        for each, total in zip((one, other), sums, strict=True)
    ]
    norm = np.sqrt(squares[0]) * np.sqrt(squares[1])
    return np.where(norm > 0, both / np.maximum(norm, 1.0), 0.0)


def _resampling(share: float) -> npt.NDArray[np.float64]:
    """(32, 32): the weights of each pixel of a middle part that is enlarged to the whole."""
    centres = (np.arange(SIDE) + 0.5) * share + 0.5 * (1 - share) * SIDE - 0.5
    below = np.floor(centres).astype(int)
    upper = np.rint((centres - below) * _WEIGHTS)
    weights = np.zeros((SIDE, SIDE), np.float64)
    np.add.at(weights, (np.arange(SIDE), below), _WEIGHTS - upper)
    np.add.at(weights, (np.arange(SIDE), np.minimum(below + 1, SIDE - 1)), upper)
    return weights
