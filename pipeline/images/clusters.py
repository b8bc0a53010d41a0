"""Near-duplicates: pairs of close hashes are verified by thumbnails; what hangs together is one.

Of each cluster the largest image stays, by its pixels in the corpus, of equal ones that of the
smallest key; where the corpus is divided already, one of validation, if there is any. Only images
whose hash has a partner are held in memory, 1.1 KB each.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa

from pipeline.exclude import EXCLUDED, read_table
from pipeline.hashes import KEY_BYTES, find_sorted
from pipeline.images.appearance import SIDE, Appearance
from pipeline.images.hash_pairs import HashPairs
from pipeline.images.similar import HASH_BITS, Hashes, Pairs, equal_groups, resemblance
from pipeline.split import MARK

REASON = "near_duplicate"
SKETCHES = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("weight", pa.int64()),
        ("hash", pa.uint64()),
        ("mirrored_hash", pa.uint64()),
        ("pixels", pa.int64()),
        ("thumbnail", pa.binary(SIDE * SIDE)),
    ]
)
"""What a portion leaves of its images; and `MARK`, where their place in the corpus decides."""

MAX_LEADERS = 64
"""Images of one hash that look different: so many are compared with all the others, further ones
stay in the dataset. So images of equal hashes cost 64 comparisons each at the most."""
VERIFIED_AT_ONCE = 1024
"""Pairs; 8 KB each."""
SHOWN_CLUSTERS, SHOWN_KEYS = 20, 8
"""In the report."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which images count as the same; `benchmarks/image_duplicates.py` measured the defaults."""

    enabled: bool = False
    """true: only one of images that look the same stays. Not for corpora in which different images
    look alike by nature, such as digits or plots."""
    radius: int = 8
    """Bits of 64 in which the hashes of candidates differ at most, 0 to 16."""
    min_correlation: float = 0.95
    """Of the thumbnails of candidates, 0.5 to 1: below it they are different images. Above 0.9 no
    two of 10,000 CIFAR-10 images were that are not the same picture."""
    mirrored: bool = True
    """Mirror images count as the same."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 16:
            raise ValueError(f"radius: {self.radius}; 0 to 16 bits are allowed")
        if not 0.5 <= self.min_correlation <= 1:
            raise ValueError(f"min_correlation: {self.min_correlation}; 0.5 to 1 are allowed")


@dataclass(frozen=True, slots=True)
class Clusters:
    """Images that look the same, by index into `rows`."""

    rows: pa.RecordBatch
    """Of `SKETCHES` and `MARK`, each key once, ascending."""
    groups: tuple[tuple[int, ...], ...]
    """The one that stays first, then the others by key; the largest group first."""

    def excluded(self) -> pa.RecordBatch:
        """All images but those that stay, as rows of `EXCLUDED`, by key."""
        keys = self.rows.column("key").to_pylist()
        kept = {other: group[0] for group in self.groups for other in group[1:]}
        details = [
            f"of {keys[first].hex()}, {self._distance(other, first)} of {HASH_BITS} bits"
            for other, first in sorted(kept.items())
        ]
        columns = [
            pa.array([keys[other] for other in sorted(kept)], EXCLUDED.field("key").type),
            pa.array([REASON] * len(kept), pa.string()),
            pa.array(details, pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=EXCLUDED)

    def _distance(self, one: int, other: int) -> int:
        """Of the nearer of the image and its mirror image."""
        names = ("hash", "mirrored_hash")
        values = [self.rows.column(name)[one].as_py() for name in names]
        other_hash = self.rows.column("hash")[other].as_py()
        return min(int(value ^ other_hash).bit_count() for value in values)


def sketch_rows(
    keys: pa.Array, weight: npt.NDArray[np.int64], appearances: Sequence[bytes]
) -> pa.RecordBatch:
    """Rows of `SKETCHES` from packed appearances."""
    seen = [Appearance.unpack(one) for one in appearances]
    columns = [
        keys,
        pa.array(weight, pa.int64()),
        pa.array([one.hash for one in seen], pa.uint64()),
        pa.array([one.mirrored_hash for one in seen], pa.uint64()),
        pa.array([one.pixels for one in seen], pa.int64()),
        pa.array([one.thumbnail for one in seen], SKETCHES.field("thumbnail").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SKETCHES)


def find_clusters(sketches: Iterable[Path | None], pairs: HashPairs, config: Config) -> Clusters:
    """Verify the close pairs by thumbnails, and join what hangs together."""
    rows = _rows_of_interest(sketches, pairs)
    links = _Links(rows.num_rows)
    candidates = _Candidates(rows, config.min_correlation, links)
    leaders = candidates.link_equal_hashes()
    turned = candidates.rows_by_mirrored_hash()
    for cropped in (False, True):
        for block in row_pairs(pairs.plain, leaders, leaders):
            candidates.link(block, mirror=False, cropped=cropped)
        for block in row_pairs(pairs.mirrored, leaders, turned):
            candidates.link(block, mirror=True, cropped=cropped)
    return Clusters(rows, _groups(rows, links))


def summary(clusters: Clusters) -> dict[str, Any]:
    """The clusters as the report shows them: the number of them, and the largest ones."""
    keys = clusters.rows.column("key")
    thumbnails = clusters.rows.column("thumbnail")
    return {
        "clusters": len(clusters.groups),
        "images": sum(map(len, clusters.groups)),
        "largest": [
            {
                "images": len(group),
                "kept": keys[group[0]].as_py().hex(),
                "others": [keys[other].as_py().hex() for other in group[1 : 1 + SHOWN_KEYS]],
                "thumbnail": _data_uri(thumbnails[group[0]].as_py()),
            }
            for group in clusters.groups[:SHOWN_CLUSTERS]
        ],
    }


class _Links:
    """Union-find: which rows hang together."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = row = self.parent[self.parent[row]]
        return row

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self.parent[second] = first

    def apart(self, pairs: Pairs) -> Pairs:
        """The pairs that do not hang together yet."""
        chosen = [self.root(one) != self.root(other) for one, other in pairs.tolist()]
        return pairs[np.array(chosen, np.bool_)]


class _Candidates:
    """Images whose hashes are close; thumbnails decide."""

    def __init__(self, rows: pa.RecordBatch, min_correlation: float, links: _Links) -> None:
        self.rows = rows
        self.hashes = np.asarray(rows.column("hash"))
        raw = b"".join(rows.column("thumbnail").to_pylist())
        self.thumbnails = np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE)
        self.min_correlation = min_correlation
        self.links = links

    def link_equal_hashes(self) -> dict[int, list[int]]:
        """Link the images of each hash; returns those by which others are compared with them."""
        leaders = {value: [row] for row, value in enumerate(self.hashes.tolist())}
        for group in equal_groups(self.hashes):
            leaders[int(self.hashes[group[0]])] = self._link_group(group)
        return leaders

    def _link_group(self, left: Pairs) -> list[int]:
        """The first image takes all that show the same, then the first one left does."""
        leaders: list[int] = []
        while len(left) and len(leaders) < MAX_LEADERS:
            leader, others = left[0], left[1:]
            leaders.append(int(leader))
            pairs = np.stack([np.full(len(others), leader), others], axis=1)
            same = self._verified(pairs, mirror=False, cropped=True)
            for other in others[same].tolist():
                self.links.join(int(leader), other)
            left = others[~same]
        return leaders

    def rows_by_mirrored_hash(self) -> dict[int, list[int]]:
        """By the hash of their mirror image, so many as are compared."""
        found: dict[int, list[int]] = {}
        for row, value in enumerate(self.rows.column("mirrored_hash").to_pylist()):
            rows = found.setdefault(value, [])
            if len(rows) < MAX_LEADERS:
                rows.append(row)
        return found

    def link(self, pairs: Pairs, *, mirror: bool, cropped: bool) -> None:
        """Link the pairs that show the same; those that hang together need no look."""
        for start in range(0, len(pairs), VERIFIED_AT_ONCE):
            block = self.links.apart(pairs[start : start + VERIFIED_AT_ONCE])
            verified = self._verified(block, mirror=mirror, cropped=cropped)
            for one, other in block[verified].tolist():
                self.links.join(one, other)

    def _verified(self, pairs: Pairs, *, mirror: bool, cropped: bool) -> npt.NDArray[np.bool_]:
        found = [np.empty(0, np.bool_)]
        for start in range(0, len(pairs), VERIFIED_AT_ONCE):
            left, right = self.thumbnails[pairs[start : start + VERIFIED_AT_ONCE].T]
            shown = right[:, :, ::-1] if mirror else right
            found.append(resemblance(left, shown, cropped=cropped) >= self.min_correlation)
        return np.concatenate(found)


def row_pairs(
    pairs: Hashes, lefts: dict[int, list[int]], rights: dict[int, list[int]]
) -> Iterator[Pairs]:
    """Pairs of images for pairs of hashes, in blocks: all at once would be Python objects of each.

    Args:
        pairs: of hashes.
        lefts: images by the first hash of a pair.
        rights: images by the second one.
    """
    for start in range(0, len(pairs), VERIFIED_AT_ONCE):
        found = [
            (one, other)
            for left, right in pairs[start : start + VERIFIED_AT_ONCE].tolist()
            for one in lefts.get(left, ())
            for other in rights.get(right, ())
            if one != other
        ]
        yield np.array(found, np.int64).reshape(-1, 2)


def wanted_hashes(pairs: HashPairs) -> Hashes:
    """Of images that have a partner; column by column, for pairs are many and hashes few."""
    sides = (pairs.plain[:, 0], pairs.plain[:, 1], pairs.mirrored[:, 0])
    return np.unique(np.concatenate([*map(np.unique, sides)]))


def _rows_of_interest(sketches: Iterable[Path | None], pairs: HashPairs) -> pa.RecordBatch:
    """The images whose hash is another one's too or has a partner, each key once, by key."""
    hashes = [np.asarray(rows.column("hash")) for rows in _tables(sketches, ("hash",))]
    every, count = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
    wanted = np.unique(np.concatenate([every[count > 1], wanted_hashes(pairs)]))
    turned = np.unique(pairs.mirrored[:, 1])
    marked = SKETCHES.append(pa.field(MARK, pa.bool_()))
    found = [pa.RecordBatch.from_pylist([], schema=marked)]
    for rows in _tables(sketches):
        if MARK not in rows.schema.names:
            rows = rows.append_column(MARK, pa.array(np.zeros(rows.num_rows, np.bool_)))
        chosen = find_sorted(wanted, np.asarray(rows.column("hash"))) >= 0
        chosen |= find_sorted(turned, np.asarray(rows.column("mirrored_hash"))) >= 0
        found.append(rows.filter(pa.array(chosen)).cast(marked))
    return _one_of_each_key(pa.concat_batches(found))


def _tables(
    sketches: Iterable[Path | None], columns: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    for path in sketches:
        assert path is not None, "what a portion left is gone"
        yield read_table(path, columns)


def _one_of_each_key(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Of copies, whose originals may have differed, one of validation, then of most pixels."""
    order = [("key", "ascending"), (MARK, "descending"), ("pixels", "descending")]
    order += [("hash", "ascending"), ("thumbnail", "ascending")]
    rows = rows.sort_by(order)
    keys = rows.column("key").to_pylist()
    first = [row for row in range(len(keys)) if not row or keys[row] != keys[row - 1]]
    return rows.take(pa.array(first, pa.int64()))


def _groups(rows: pa.RecordBatch, links: _Links) -> tuple[tuple[int, ...], ...]:
    members: dict[int, list[int]] = {}
    for row in range(rows.num_rows):
        members.setdefault(links.root(row), []).append(row)
    pixels = rows.column("pixels").to_pylist()
    trains = [not validates for validates in rows.column(MARK).to_pylist()]
    groups = []
    for group in members.values():
        if len(group) > 1:
            kept = min(group, key=lambda row: (trains[row], -pixels[row], row))
            groups.append((kept, *(row for row in group if row != kept)))
    return tuple(sorted(groups, key=lambda group: (-len(group), group[0])))


def _data_uri(thumbnail: bytes) -> str:
    """A thumbnail for a page that needs no file beside it."""
    file = io.BytesIO()
    PIL.Image.frombytes("L", (SIDE, SIDE), thumbnail).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
