"""A file with one JSON row a step, which a resumed run continues without a gap or a repetition."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.patient_file import PatientFile


class StepLog:
    """Rows of a run, each with its `step`, ascending; written by rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = PatientFile(path)

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a last one that a kill has cut is left out."""
        return [row for row, _ in self._read()]

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, and try again those that a full disk has refused.

        A number that is not finite becomes null, for JSON has none.
        """
        self.file.add(map(_line, rows))
        self.file.flush()

    def append_now(self, row: dict[str, Any]) -> bool:
        """Add a row that is of no use later; False where a full disk refuses it."""
        return self.file.write_now(_line(row))

    def cut_behind(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows of steps behind the checkpoint that the run continues from; the rest."""
        kept = [(row, end) for row, end in self._read() if row["step"] <= step]
        if self.path.exists():
            os.truncate(self.path, kept[-1][1] if kept else 0)
        return [row for row, _ in kept]

    def close(self) -> None:
        """Try for the last time what a full disk has refused."""
        self.file.close()

    def _read(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each whole row, and the byte behind it."""
        end = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            end += len(line)
            if not line.endswith(b"\n"):
                break
            try:
                yield json.loads(line), end
            except json.JSONDecodeError:
                break


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(_finite(row), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """A tree without numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
