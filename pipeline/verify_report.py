"""The rules for the report of a dataset, and for the rejects that it counts."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pipeline.batch import REJECTS
from pipeline.manifest import Manifest
from pipeline.report import PAGE_SHA256, REPORT, REPORT_HTML
from pipeline.verify_shard import Findings

RULES = {"report": "the report is the manifest's, and every reject that it counts is there"}
FOLDER = "rejects"
SUFFIX = ".jsonl.gz"

Counts = dict[str, tuple[int, int]]
"""Records and bytes by reason."""


def check_report(dataset_dir: Path, manifest: Manifest, findings: Findings) -> None:
    """Check the report and the rejects; a report that cannot be read is a fault of `sidecars`."""
    report = _read(dataset_dir / REPORT)
    stages: dict[str, Counts] | None = None
    if report is not None:
        findings.checked["report"] += 1
        try:
            for message in _disagreements(report, manifest):
                findings.add("report", REPORT, message)
            _check_page(dataset_dir / REPORT_HTML, report, findings)
            stages = _count_listed(report)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            findings.add("report", REPORT, f"damaged ({type(error).__name__}: {error})")
    if (dataset_dir / FOLDER).is_dir():
        _check_rejects(dataset_dir / FOLDER, stages, findings)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _disagreements(report: dict[str, Any], manifest: Manifest) -> Iterator[str]:
    """Where the report says something else than the manifest."""
    if report["kind"] != manifest.kind:
        yield f"is of kind {report['kind']!a}, the manifest of {manifest.kind}"
    names = ("samples", "tokens", "bytes")
    found = {row["name"]: tuple(row[name] for name in names) for row in report["shards"]}
    listed = {
        shard.name: tuple(getattr(shard, name) for name in names)
        for shards in manifest.splits.values()
        for shard in shards
    }
    for shard in sorted({*found, *listed}):
        if found.get(shard) != listed.get(shard):
            here, there = _numbers(found.get(shard)), _numbers(listed.get(shard))
            yield f"has {here} of {ascii(shard)[1:-1]}, the manifest {there}"
    for split in sorted({*report["splits"], *manifest.splits}):
        shards = manifest.splits.get(split, ())
        sums = {name: sum(getattr(one, name) for one in shards) for name in ("tokens", "bytes")}
        sums["shards"] = len(shards)
        said = report["splits"].get(split, {})
        if {name: said.get(name) for name in sums} != sums:
            yield f"its sums of split {ascii(split)[1:-1]} are not the manifest's"


def _numbers(row: tuple[int, ...] | None) -> str:
    return "nothing" if row is None else "{} samples, {} tokens, {} bytes".format(*row)


def _check_page(path: Path, report: dict[str, Any], findings: Findings) -> None:
    """Compare the page with the sha256 that reports have which were written with one."""
    if PAGE_SHA256 in report and path.is_file():
        findings.checked["report"] += 1
        if hashlib.sha256(path.read_bytes()).hexdigest() != report[PAGE_SHA256]:
            findings.add("report", REPORT_HTML, f"its sha256 is not that of {REPORT}")


def _count_listed(report: dict[str, Any]) -> dict[str, Counts]:
    """What the report counts of each stage."""
    stages: dict[str, Counts] = {}
    for row in report["rejects"]:
        counts = stages.setdefault(row["stage"], {})
        counts[row["reason"]] = (row["records"], row["bytes"])
    return stages


def _check_rejects(folder: Path, stages: dict[str, Counts] | None, findings: Findings) -> None:
    present = {path.name: path for path in folder.iterdir()}
    listed = {f"{stage}{SUFFIX}" for stage in stages or {}}
    for name in sorted({*present, *listed}):
        where = f"{FOLDER}/{ascii(name)[1:-1]}"
        findings.checked["report"] += 1
        if name not in present:
            findings.add("report", where, f"is missing; {REPORT} counts rejects of this stage")
        elif not name.endswith(SUFFIX) or not present[name].is_file():
            findings.add("files", where, "is no file of rejects")
        else:
            stage = name.removesuffix(SUFFIX)
            expected = None if stages is None else stages.get(stage, {})
            for message in _faults(present[name], stage, expected):
                findings.add("report", where, message)


def _faults(path: Path, stage: str, expected: Counts | None) -> Iterator[str]:
    """What is wrong with the rejects of a stage."""
    found: Counts = {}
    number = 0
    try:
        with gzip.open(path) as lines:
            for line in lines:
                number += 1
                reason, size = _parse(line, stage)
                records, num_bytes = found.get(reason, (0, 0))
                found[reason] = (records + 1, num_bytes + size)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        yield f"cannot be read behind line {max(0, number - 1)}: {error}"
        return
    if expected is None:
        return
    for reason in sorted({*found, *expected}):
        here, there = found.get(reason, (0, 0)), expected.get(reason, (0, 0))
        if here != there:
            yield (
                f"has {here[0]} records of {here[1]} bytes with reason {ascii(reason)[1:-1]}, "
                f"{REPORT} counts {there[0]} of {there[1]}"
            )


def _parse(line: bytes, stage: str) -> tuple[str, int]:
    """Reason and bytes of a reject."""
    row = orjson.loads(line)
    if not isinstance(row, dict):
        raise ValueError("is no object")  # noqa: TRY004  (damage, not a wrong call)
    if set(row) != set(REJECTS.names):
        raise ValueError(f"has the fields {sorted(row)}, must have {sorted(REJECTS.names)}")
    if row["stage"] != stage:
        raise ValueError(f"is of stage {row['stage']!a}")
    reason, size = row["reason"], row["bytes"] or 0
    if not isinstance(reason, str) or not isinstance(size, int):
        raise ValueError("has a reason that is no text, or bytes that are no number")  # noqa: TRY004
    return reason, size
