"""Rejects on their way to `DATASET/rejects/<stage>.jsonl.gz`: every row, with reason and origin.

Portions and shards write gzip members of their own, in parallel; the published file is their
concatenation in order, which is a gzip file again: bounded memory, and the same rows in the same
order whatever the number of workers.
"""

import heapq
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import REJECTS, concat
from pipeline.machine import on_this_machine, writing

EXAMPLES = 3
"""So many rejects of each stage and reason are kept for the report."""
EXAMPLE_EXCERPT = 200
"""Characters of text that an example shows."""
ORIGIN = ("source", "position", "reason")
"""Columns that decide the order of rows."""
PIECE_BYTES = 16 * 2**20
"""So many bytes of rejects are held in memory; 30,000 to 150,000 rows."""
BLOCK_ROWS = 512
"""So many rows are Python objects at a time, 1 MB, of each piece that is merged."""
GZIP = 16 + zlib.MAX_WBITS
"""Of zlib: with the header of gzip, which has no time and no name."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one stage gave one reason, with the first examples."""

    stage: str
    reason: str
    records: int
    bytes: int
    examples: tuple[dict[str, str | int], ...]
    """Source, position, detail and excerpt of the first few."""


@dataclass(slots=True)
class RejectPieces:
    """The rejects of a portion or a shard, in memory up to a size and behind it on disk.

    They come in any order, and nearly always in that of their origin. A piece is sorted and goes
    into a file without a name, which is gone with the process, whatever ends it.
    """

    folder: Path
    """Of the members; the file without a name lies in it."""
    piece_bytes: int = PIECE_BYTES
    """So many are held before they go to disk; decides no byte of a member."""
    tallies: list[Tally] = field(default_factory=list)
    """Of all that went to disk."""
    _held: list[pa.RecordBatch] = field(default_factory=list)
    _held_bytes: int = 0
    _file: BinaryIO | None = None
    _runs: dict[str, list["_Run"]] = field(default_factory=dict)

    def add(self, rejects: pa.RecordBatch) -> None:
        """Take rows of any stages."""
        if rejects.num_rows:
            self._held.append(rejects)
            self._held_bytes += rejects.nbytes
        if self._held_bytes > self.piece_bytes:
            self._spill()

    def write(self, name: str) -> list[Tally]:
        """Write the rows, sorted by origin, as `folder/<stage>/<name>.jsonl.gz`, and no others."""
        self._spill()
        for outdated in self.folder.glob(f"*/{name}.jsonl.gz"):  # of a build with other filters
            with on_this_machine(outdated):
                outdated.unlink()
        for stage, runs in self._runs.items():
            rows = heapq.merge(*map(self._rows, runs), key=_full_origin)
            _write_member(self.folder / stage / f"{name}.jsonl.gz", rows)
        if self._file:
            self._file.close()
        return self.tallies

    def _spill(self) -> None:
        if not self._held:
            return
        rejects = sort_rejects(concat(self._held))
        self._held, self._held_bytes = [], 0
        self.tallies = add_tallies([*self.tallies, *tally(rejects)])
        for stage in pc.unique(rejects.column("stage")).to_pylist():
            rows = rejects.filter(pc.equal(rejects.column("stage"), stage))
            first, last = (
                _full_origin(rows.slice(i, 1).to_pylist()[0]) for i in (0, len(rows) - 1)
            )
            runs = self._runs.setdefault(stage, [])
            if not runs or first < runs[-1].last:
                runs.append(_Run())
            runs[-1].last = last
            runs[-1].blocks.extend(self._append(rows))

    def _append(self, rows: pa.RecordBatch) -> Iterator["_Block"]:
        with on_this_machine(self.folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, prefix=".")  # noqa: SIM115
            for begin in range(0, rows.num_rows, BLOCK_ROWS):
                plain = rows.slice(begin, BLOCK_ROWS).serialize()
                packed = pa.compress(plain, codec="zstd", asbytes=True)
                yield _Block(self._file.tell(), len(packed), plain.size)
                self._file.write(packed)
            self._file.flush()

    def _rows(self, run: "_Run") -> Iterator[dict[str, Any]]:
        assert self._file is not None
        for block in run.blocks:
            packed = os.pread(self._file.fileno(), block.size, block.offset)
            plain = pa.decompress(packed, block.plain_size, codec="zstd")
            yield from pa.ipc.read_record_batch(plain, REJECTS).to_pylist()


def write_rejects(folder: Path, name: str, rejects: pa.RecordBatch) -> list[Tally]:
    """Write rows that are in memory; returns their tallies."""
    pieces = RejectPieces(folder)
    pieces.add(rejects)
    return pieces.write(name)


def sort_rejects(rejects: pa.RecordBatch) -> pa.RecordBatch:
    """Rows by origin: source, position, reason."""
    return rejects.sort_by([(name, "ascending") for name in ORIGIN])


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
        first = rows.take(pc.indices_nonzero(same)[:EXAMPLES])  # a filter would copy all of them
        examples = tuple(map(_example, first.to_pylist()))
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


@dataclass(slots=True)
class _Run:
    """Rows of one stage in order of origin, on disk."""

    blocks: list["_Block"] = field(default_factory=list)
    last: tuple[Any, ...] = ()


class _Block(NamedTuple):
    offset: int
    size: int
    plain_size: int


def _write_member(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a gzip member complete or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with on_this_machine(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, temporary):
        packer = zlib.compressobj(6, wbits=GZIP)
        with temporary.open("wb") as file:
            for row in rows:
                file.write(packer.compress(orjson.dumps(row) + b"\n"))
            file.write(packer.flush())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _full_origin(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["source"], row["position"], row["reason"]


def _origin(example: dict[str, str | int]) -> tuple[str, int]:
    return str(example["source"]), int(example["position"])


def _example(row: dict[str, str | int]) -> dict[str, str | int]:
    return {
        "source": row["source"],
        "position": row["position"],
        "detail": row["detail"],
        "excerpt": str(row["excerpt"])[:EXAMPLE_EXCERPT],
    }
