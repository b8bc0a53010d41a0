"""`python -m pipeline.report DATASET`: the dataset report, a funnel from records to tokens."""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.command import run
from pipeline.decide import Decision
from pipeline.key import STAGE as DEDUPLICATE
from pipeline.rejects import add_tallies, tally_row
from pipeline.report_html import render_html
from pipeline.shards import ShardRow
from pipeline.split import SPLITS
from pipeline.urls import read_url
from pipeline.work import write_atomic

REPORT, REPORT_HTML = "report.json", "report.html"
PAGE_SHA256 = "page_sha256"
"""Field of report.json: of report.html, by which `pipeline.verify` knows the page."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report", description="Print the funnel of a dataset."
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a dataset")
    dataset = parser.parse_args(argv).dataset
    run(lambda: print_report(dataset))


def build_report(
    decision: Decision,
    rows: Sequence[ShardRow],
    *,
    kind: str,
    request: str,
    corpus_files: int,
    corpus_bytes: int,
    seconds: float,
    stage_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The report as a tree: what came in, what each stage did, what came out."""
    tallies = add_tallies([*decision.tallies, *(one for row in rows for one in row.duplicates)])
    return {
        "kind": kind,
        "request": request,
        "seconds": round(seconds, 1),
        "stage_seconds": {stage: round(took, 2) for stage, took in stage_seconds.items()},
        "corpus": {"files": corpus_files, "bytes": corpus_bytes},
        "funnel": _funnel(decision, rows),
        "rejects": [tally_row(one) for one in tallies],
        "splits": {split: _split(split, rows) for split in SPLITS if _of(split, rows)},
        "lengths": _add_lengths([row.lengths for row in rows]),
        "shards": [
            {
                "name": row.shard.name,
                "documents": row.documents,
                "tokens": row.shard.tokens,
                "samples": row.shard.samples,
                "bytes": row.shard.bytes,
            }
            for row in rows
        ],
    }


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write report.json and report.html."""
    page = render_html(report).encode("utf-8", "xmlcharrefreplace")
    tree = {**report, PAGE_SHA256: hashlib.sha256(page).hexdigest()}
    write_atomic(folder / REPORT, (json.dumps(tree, indent=1, ensure_ascii=False)).encode())
    write_atomic(folder / REPORT_HTML, page)


def print_report(dataset: str | Path) -> None:
    """Print the funnel, the rejects by reason and the totals of a dataset, at a path or a URL.

    Raises:
        FileNotFoundError: the folder holds no report.
        ValueError: the report is damaged.
        StoreError: the store does not give it.
    """
    where = f"{str(dataset).rstrip('/')}/{REPORT}"
    try:
        content = read_url(where)
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no report; is this a dataset?") from None
    try:
        show_report(json.loads(content), dataset)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: damaged report ({type(error).__name__}: {error})") from None


def show_report(report: dict[str, Any], dataset: str | Path) -> None:
    """Print a report, and behind it where its dataset lies."""
    shown = _render(report)
    console = Console(highlight=False)
    for part in shown:
        console.print(part, markup=False)
    console.print(f"{dataset}", soft_wrap=True, markup=False)


def _render(report: dict[str, Any]) -> list[Table | str]:
    parts: list[Table | str] = [_funnel_table(report["funnel"])]
    if report["rejects"]:
        parts.append(_rejects_table(report["rejects"]))
    for split, sums in report["splits"].items():
        held = f"{sums['documents']:,} images"
        if report["kind"] == "text":
            held = f"{sums['documents']:,} documents, {sums['tokens']:,} tokens"
        size = f"{sums['shards']} shards, {sums['bytes'] / 1e6:,.1f} MB"
        parts.append(f"{split}: {held}, {size}")
    if found := report.get("near_duplicates"):
        told = f"{found['clusters']:,} clusters of {found['images']:,} images that look the same"
        parts.append(f"{told}, one of each stays")
    # a stage of less than a tenth is not worth a line
    took = {stage: it for stage, it in report.get("stage_seconds", {}).items() if it >= 0.1}
    if took:
        parts.append(_seconds_table(took, report["corpus"]["bytes"] / 1e6))
    rate = report["corpus"]["bytes"] / 1e6 / max(report["seconds"], 0.1)
    parts.append(f"{report['seconds']:,.1f} s, {rate:.1f} MB/s of corpus")
    return parts


def _funnel(decision: Decision, rows: Sequence[ShardRow]) -> list[dict[str, Any]]:
    """Records and bytes in and out of each stage; what shards dropped counts as deduplication."""
    dropped = sum(one.records for row in rows for one in row.duplicates)
    dropped_bytes = sum(one.bytes for row in rows for one in row.duplicates)
    funnel = []
    late = False
    for one in decision.counts:
        late = late or one.stage == DEDUPLICATE
        before = late and one.stage != DEDUPLICATE
        funnel.append(
            {
                "stage": one.stage,
                "records_in": one.records_in - dropped * before,
                "bytes_in": one.bytes_in - dropped_bytes * before,
                "records_out": one.records_out - dropped * late,
                "bytes_out": one.bytes_out - dropped_bytes * late,
            }
        )
    return funnel


def _split(split: str, rows: Sequence[ShardRow]) -> dict[str, int]:
    chosen = _of(split, rows)
    return {
        "documents": sum(row.documents for row in chosen),
        "text_bytes": sum(row.text_bytes for row in chosen),
        "tokens": sum(row.shard.tokens for row in chosen),
        "shards": len(chosen),
        "bytes": sum(row.shard.bytes for row in chosen),
    }


def _of(split: str, rows: Sequence[ShardRow]) -> list[ShardRow]:
    return [row for row in rows if row.split == split]


def _add_lengths(columns: Sequence[Sequence[int]]) -> list[int]:
    sums = [0] * max(map(len, columns), default=0)
    for column in columns:
        for index, count in enumerate(column):
            sums[index] += count
    return sums


def _funnel_table(funnel: list[dict[str, Any]]) -> Table:
    table = Table(title="Funnel", title_justify="left")
    table.add_column("stage")
    for name in ("records in", "records out", "MB in", "MB out"):
        table.add_column(name, justify="right")
    for row in funnel:
        table.add_row(
            Text(row["stage"]),
            f"{row['records_in']:,}",
            f"{row['records_out']:,}",
            f"{row['bytes_in'] / 1e6:,.1f}",
            f"{row['bytes_out'] / 1e6:,.1f}",
        )
    return table


def _seconds_table(took: Mapping[str, float], megabytes: float) -> Table:
    """Of all workers together."""
    table = Table(title="Time of stages, all workers", title_justify="left")
    table.add_column("stage")
    for name in ("seconds", "MB/s of corpus"):
        table.add_column(name, justify="right")
    for stage, seconds in took.items():
        table.add_row(Text(stage), f"{seconds:,.1f}", f"{megabytes / seconds:,.1f}")
    return table


def _rejects_table(rejects: list[dict[str, Any]]) -> Table:
    table = Table(title="Rejects, every one in rejects/", title_justify="left")
    for name in ("stage", "reason"):
        table.add_column(name)
    for name in ("records", "MB"):
        table.add_column(name, justify="right")
    for row in rejects:
        table.add_row(
            Text(row["stage"]),
            Text(row["reason"]),
            f"{row['records']:,}",
            f"{row['bytes'] / 1e6:,.1f}",
        )
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
