"""What a check found, and how findings are shown."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

Verdict = Literal["ok", "note", "fault"]
COLOURS = {"ok": "green", "note": "yellow", "fault": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a table."""

    verdict: Verdict
    """`ok`; `note`, worth knowing and no fault; `fault`, which ends the verb with exit code 1."""
    what: str
    """Looked at."""
    found: str
    """And, where it is not as it should be, what to do."""


def show(title: str, findings: Iterable[Finding], console: Console) -> int:
    """Print the findings as a table; how many of them are faults."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    faults = 0
    for finding in findings:
        faults += finding.verdict == "fault"
        colour = COLOURS[finding.verdict]
        table.add_row(f"[{colour}]{finding.verdict}[/]", finding.what, finding.found)
    console.print(table)
    console.print()
    return faults
