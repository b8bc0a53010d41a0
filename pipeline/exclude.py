"""Documents that a look at the whole corpus refuses, before the shards are planned.

A stage that compares all documents, by the small sketches that portions leave of them, writes the
keys of those that are out; the plan leaves them out, and shards make rejects of them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.hashes import KEY_BYTES, find_sorted, key_bytes
from pipeline.work import write_atomic

EXCLUDED = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Excluded:
    """The documents that are out, of whatever number of copies."""

    rows: pa.RecordBatch
    """Of `EXCLUDED`, each key once, ascending."""

    @classmethod
    def none(cls) -> "Excluded":
        """No documents."""
        return cls(pa.RecordBatch.from_pylist([], schema=EXCLUDED))

    def find(self, keys: pa.Array) -> npt.NDArray[np.int64]:
        """The row of each key, -1 where it is not out.

        The file is mapped and bisected: as many portions and shards ask as the corpus is large.
        """
        return find_sorted(key_bytes(self.rows.column("key")), key_bytes(keys))


def write_table(path: Path, rows: pa.RecordBatch) -> None:
    """Write an Arrow file complete or not at all."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_batch(rows)
    write_atomic(path, file.getvalue())


def read_table(path: Path, columns: Sequence[str] = ()) -> pa.RecordBatch:
    """The rows of an Arrow file, mapped into memory; all columns, or those that are named."""
    with pa.memory_map(str(path)) as file:
        rows = pa.ipc.open_file(file).get_batch(0)
    return rows.select(list(columns)) if columns else rows


def read_excluded(path: Path) -> Excluded:
    """What the stage found."""
    return Excluded(read_table(path))
