"""Rejects on their way to `DATASET/rejects/<stage>.jsonl.gz`: every row, with reason and origin.

Portions and shards write gzip members of their own, in parallel; the published file is their
concatenation in order, which is a gzip file again: bounded memory, and the same rows in the same
order whatever the number of workers.
"""

import gzip
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.machine import on_this_machine
from pipeline.work import write_atomic

EXAMPLES = 3
"""So many rejects of each stage and reason are kept for the report."""
EXAMPLE_EXCERPT = 200
"""Characters of text that an example shows."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one stage gave one reason, with the first examples."""

    stage: str
    reason: str
    records: int
    bytes: int
    examples: tuple[dict[str, str | int], ...]
    """Source, position, detail and excerpt of the first few."""


def write_rejects(folder: Path, name: str, rejects: pa.RecordBatch) -> None:
    """Write the rows, sorted by origin, as `folder/<stage>/<name>.jsonl.gz`, and no others."""
    for outdated in folder.glob(f"*/{name}.jsonl.gz"):  # of a build with other filters
        with on_this_machine(outdated):
            outdated.unlink()
    for stage in pc.unique(rejects.column("stage")).to_pylist():
        rows = sort_rejects(rejects.filter(pc.equal(rejects.column("stage"), stage)))
        lines = b"".join(orjson.dumps(row) + b"\n" for row in rows.to_pylist())
        path = folder / stage / f"{name}.jsonl.gz"
        with on_this_machine(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, gzip.compress(lines, 6, mtime=0))


def sort_rejects(rejects: pa.RecordBatch) -> pa.RecordBatch:
    """Rows by origin: source, position, reason."""
    return rejects.sort_by([(name, "ascending") for name in ("source", "position", "reason")])


def tally(rejects: pa.RecordBatch) -> list[Tally]:
    """Count the rows by stage and reason; the examples are the first ones by origin."""
    rows = sort_rejects(rejects)
    table = pa.table({name: rows.column(name) for name in ("stage", "reason", "bytes")})
    groups = table.group_by(["stage", "reason"]).aggregate([([], "count_all"), ("bytes", "sum")])
    found = []
    for group in groups.sort_by([("stage", "ascending"), ("reason", "ascending")]).to_pylist():
        stage, reason = group["stage"], group["reason"]
        same = pc.and_(
            pc.equal(rows.column("stage"), stage), pc.equal(rows.column("reason"), reason)
        )
        examples = tuple(map(_example, rows.filter(same).slice(0, EXAMPLES).to_pylist()))
        found.append(Tally(stage, reason, group["count_all"], group["bytes_sum"] or 0, examples))
    return found


def add_tallies(tallies: Iterable[Tally]) -> list[Tally]:
    """Sum tallies by stage and reason; the examples are the first by origin, in any order."""
    sums: dict[tuple[str, str], Tally] = {}
    for one in tallies:
        before = sums.get((one.stage, one.reason))
        if before is not None:
            one = Tally(  # noqa: PLW2901
                one.stage,
                one.reason,
                before.records + one.records,
                before.bytes + one.bytes,
                tuple(sorted((*before.examples, *one.examples), key=_origin)[:EXAMPLES]),
            )
        sums[one.stage, one.reason] = one
    return [sums[key] for key in sorted(sums)]


def tally_row(one: Tally) -> dict[str, object]:
    """A tally as JSON."""
    return asdict(one)


def tally_from_row(row: dict[str, object]) -> Tally:
    """A tally from JSON."""
    values: dict[str, object] = {**row, "examples": tuple(row["examples"])}  # type: ignore[arg-type]
    return Tally(**values)  # type: ignore[arg-type]


def join_rejects(folder: Path, names: list[str], out_dir: Path) -> None:
    """Concatenate the members `names` of each stage, in this order, into `out_dir/<stage>`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for stage in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        members = [folder / stage / f"{name}.jsonl.gz" for name in names]
        present = [path for path in members if path.exists()]
        if not present:
            continue
        temporary = out_dir / f".{stage}.jsonl.gz"
        with temporary.open("wb") as out:
            for path in present:
                with path.open("rb") as member:
                    shutil.copyfileobj(member, out)
        temporary.replace(out_dir / f"{stage}.jsonl.gz")


def _origin(example: dict[str, str | int]) -> tuple[str, int]:
    return str(example["source"]), int(example["position"])


def _example(row: dict[str, str | int]) -> dict[str, str | int]:
    return {
        "source": row["source"],
        "position": row["position"],
        "detail": row["detail"],
        "excerpt": str(row["excerpt"])[:EXAMPLE_EXCERPT],
    }
