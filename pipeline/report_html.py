"""The dataset report as one HTML page without scripts; everything from the corpus is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4a7; height: 1em; display: inline-block }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .5em }
"""


def render_html(report: dict[str, Any]) -> str:
    """The page of a report tree."""
    corpus = report["corpus"]
    intro = (
        f"{corpus['files']:,} corpus files, {corpus['bytes'] / 1e6:,.1f} MB, "
        f"built in {report['seconds']:,.1f} s."
    )
    is_text = report["kind"] == "text"
    documents = "documents" if is_text else "images"
    amounts = ("tokens",) if is_text else ()
    body = [
        "<h1>Dataset report</h1>",
        f"<p>{escape(intro)}</p>",
        "<h2>Funnel</h2>",
        _funnel(report["funnel"]),
        *_seconds(report.get("stage_seconds")),
        "<h2>Splits</h2>",
        _columns(
            {"split": "split", documents: "documents"},
            (*amounts, "shards", "bytes"),
            [{"split": name, **one} for name, one in report["splits"].items()],
        ),
        "<h2>Document lengths, tokens</h2>"
        if is_text
        else "<h2>Sizes of samples in the shards, bytes</h2>",
        _lengths(report["lengths"], "tokens" if is_text else "bytes", documents),
        *_near_duplicates(report.get("near_duplicates")),
        "<h2>Rejects</h2>",
        *map(_reject, report["rejects"]),
        "" if report["rejects"] else "<p>None.</p>",
        "<h2>Shards</h2>",
        _columns(
            {"name": "name", documents: "documents"},
            (*amounts, "samples", "bytes"),
            report["shards"],
        ),
    ]
    head = f'<meta charset="utf-8"><title>Dataset report</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _funnel(rows: Sequence[dict[str, Any]]) -> str:
    largest = max((row["bytes_in"] for row in rows), default=0) or 1
    cells = "".join(
        f"<tr>{_cell(row['stage'])}{_cell(row['records_in'])}{_cell(row['records_out'])}"
        f"{_cell(row['bytes_in'])}{_cell(row['bytes_out'])}"
        f"<td>{_bar(row['bytes_out'] / largest)}</td></tr>"
        for row in rows
    )
    names = ("stage", "records in", "records out", "bytes in", "bytes out", "bytes left")
    return f"<table>{_head(names)}{cells}</table>"


def _seconds(took: dict[str, float] | None) -> list[str]:
    """What each stage took, of all workers together."""
    if not took:
        return []
    largest = max(took.values())
    cells = "".join(
        f"<tr>{_cell(stage)}<td class=number>{seconds:,.1f}</td>"
        f"<td>{_bar(seconds / largest)}</td></tr>"
        for stage, seconds in took.items()
    )
    head = _head(("stage", "seconds", ""))
    return ["<h2>Time of stages, all workers</h2>", f"<table>{head}{cells}</table>"]


def _lengths(lengths: Sequence[int], unit: str, documents: str) -> str:
    """One row for each power of two, from the shortest documents to the longest."""
    largest = max(lengths, default=0) or 1
    shortest = next((i for i, count in enumerate(lengths) if count), 0)
    cells = "".join(
        f"<tr>{_cell(f'{2**i:,} to {2 ** (i + 1) - 1:,}')}{_cell(count)}"
        f"<td>{_bar(count / largest)}</td></tr>"
        for i, count in enumerate(lengths)
        if i >= shortest
    )
    return f"<table>{_head((unit, documents, ''))}{cells}</table>"


def _near_duplicates(found: dict[str, Any] | None) -> list[str]:
    """The largest clusters of images that look the same, each with the one that stays."""
    if found is None:
        return []
    told = (
        f"{found['clusters']:,} clusters of {found['images']:,} images that look the same; one of "
        f"each stays. The {len(found['largest'])} largest:"
    )
    cells = "".join(
        f'<tr><td><img width=96 height=96 alt="" src="{escape(one["thumbnail"])}"></td>'
        f"{_cell(one['images'])}{_cell(one['kept'])}"
        f"{_cell(' '.join(one['others']))}</tr>"
        for one in found["largest"]
    )
    table = f"<table>{_head(('', 'images', 'stays', 'the first others'))}{cells}</table>"
    return ["<h2>Near-duplicates</h2>", f"<p>{escape(told)}</p>", table]


def _reject(row: dict[str, Any]) -> str:
    title = f"{row['stage']}: {row['reason']}"
    summary = f"{title}, {row['records']:,} records, {row['bytes']:,} bytes"
    examples = "".join(map(_example, row["examples"]))
    return f"<details><summary>{escape(summary)}</summary>{examples}</details>"


def _example(example: dict[str, Any]) -> str:
    origin = f"{example['source']} at {example['position']}"
    detail = f" ({example['detail']})" if example["detail"] else ""
    return f"<p>{escape(origin + detail)}</p><pre>{escape(example['excerpt'])}</pre>"


def _columns(first: dict[str, str], others: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A table of these fields of the rows; `first` has headings of their own."""
    fields = {**first, **{name: name for name in others}}
    body = "".join(
        f"<tr>{''.join(_cell(row[field]) for field in fields.values())}</tr>" for row in rows
    )
    return f"<table>{_head(tuple(fields))}{body}</table>"


def _head(names: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in names)}</tr>"


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"<td class=number>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


def _bar(share: float) -> str:
    return f'<span class=bar style="width:{200 * share:.0f}px"></span>'
