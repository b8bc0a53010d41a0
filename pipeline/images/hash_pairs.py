"""Close pairs of hashes, found in one group of one band after another; files bring them together.

Of 100 million images 9 million pairs are close: too many for what Beam carries to one worker, whose
peak is 24 bytes for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.exclude import read_table, write_table
from pipeline.images.similar import Hashes

_SCHEMA = pa.schema([("left", pa.uint64()), ("right", pa.uint64()), ("mirrored", pa.bool_())])


@dataclass(frozen=True, slots=True)
class HashPairs:
    """Close pairs of hashes."""

    plain: Hashes
    """(n, 2): of two images."""
    mirrored: Hashes
    """(n, 2): of an image, and of the mirror image of another one."""

    def write(self, path: Path) -> None:
        """Write them complete or not at all."""
        both = np.concatenate([self.plain, self.mirrored])
        mirrored = np.arange(len(both)) >= len(self.plain)
        columns = [pa.array(both[:, 0]), pa.array(both[:, 1]), pa.array(mirrored)]
        write_table(path, pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))

    @classmethod
    def joined(cls, paths: Sequence[Path]) -> "HashPairs":
        """Those of several files, in their order, which have no pair in common."""
        return cls(*(_joined(paths, mirrored=mirrored) for mirrored in (False, True)))


def _joined(paths: Sequence[Path], *, mirrored: bool) -> Hashes:
    """Filled in place: joined as arrays, they would be held twice."""
    lengths = [_rows(path, mirrored=mirrored).num_rows for path in paths]
    found = np.empty((sum(lengths), 2), np.uint64)
    stops = np.cumsum(lengths, dtype=np.int64).tolist()
    for path, length, stop in zip(paths, lengths, stops, strict=True):
        rows = _rows(path, mirrored=mirrored)
        for side, name in enumerate(("left", "right")):
            found[stop - length : stop, side] = np.asarray(rows.column(name))
    return found


def _rows(path: Path, *, mirrored: bool) -> pa.RecordBatch:
    """Plain pairs come first in a file."""
    rows = read_table(path)
    num_mirrored = pc.sum(rows.column("mirrored")).as_py() or 0
    num_plain = rows.num_rows - num_mirrored
    return rows.slice(num_plain) if mirrored else rows.slice(0, num_plain)
