"""Close pairs of hashes, found in one group of one band after another; files bring them together.

Two of 100 million images are close by chance 49 million times: too many for what Beam carries to
one worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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

    @classmethod
    def joined(cls, parts: Iterable["HashPairs"]) -> "HashPairs":
        """All of them, sorted, each once."""
        none = np.empty((0, 2), np.uint64)
        held = list(parts)
        return cls(
            np.unique(np.concatenate([none, *(one.plain for one in held)]), axis=0),
            np.unique(np.concatenate([none, *(one.mirrored for one in held)]), axis=0),
        )

    def write(self, path: Path) -> None:
        """Write them complete or not at all."""
        both = np.concatenate([self.plain, self.mirrored])
        mirrored = np.arange(len(both)) >= len(self.plain)
        columns = [pa.array(both[:, 0]), pa.array(both[:, 1]), pa.array(mirrored)]
        write_table(path, pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))

    @classmethod
    def read(cls, path: Path) -> "HashPairs":
        """What was written."""
        rows = read_table(path)
        both = np.stack([np.asarray(rows.column(name)) for name in ("left", "right")], axis=1)
        mirrored: npt.NDArray[np.bool_] = rows.column("mirrored").to_numpy(zero_copy_only=False)
        return cls(both[~mirrored], both[mirrored])
