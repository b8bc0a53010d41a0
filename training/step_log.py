"""A file with one JSON row a step, which a resumed run continues without a gap or a repetition."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class StepLog:
    """Rows of a run, each with its `step`; written by rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """All rows; a last one that a kill has cut is left out."""
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows."""
        try:
            with self.path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def cut_behind(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows of steps behind the checkpoint that the run continues from; the rest."""
        rows = [row for row in self.rows() if row["step"] <= step]
        if self.path.exists():
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            temporary.replace(self.path)
        return rows
