"""Publication: finished shards and everything beside them come to the place of the dataset.

Whatever lies beside the manifest is there before it; a publication that was killed is repeated.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import to_yaml
from configs.redact import redact
from pipeline.config import PipelineConfig, byte_config
from pipeline.corpus import Portion
from pipeline.decide import Decision
from pipeline.destination import Destination
from pipeline.fingerprints import library_versions
from pipeline.index import write_sidecars
from pipeline.kind import Kind
from pipeline.manifest import Manifest, hash_config
from pipeline.portions import portion_member
from pipeline.rejects import join_rejects
from pipeline.report import REPORT, build_report, show_report, write_report
from pipeline.shards import ShardRow, shard_member, written_row
from pipeline.split import SPLITS
from pipeline.work import WorkFolder, read_json, write_atomic


@dataclass(frozen=True, slots=True)
class Building:
    """A build whose shards are all finished."""

    config: PipelineConfig
    portions: list[Portion]
    work: WorkFolder
    kind: Kind
    decision: Decision
    request: str = ""
    """Fingerprint of what was asked for."""
    started: float = 0.0
    """time.monotonic of the build's start."""


def already_published(destination: Destination, *, request: str, config: dict[str, Any]) -> bool:
    """Whether the very dataset that is asked for lies there.

    Raises:
        ValueError: another one does.
    """
    manifest = destination.manifest()
    if manifest is None:
        return False
    advice = "choose another dataset_dir, or delete this one"
    if manifest.config_hash != hash_config(config):
        raise ValueError(f"{destination.name}: holds a dataset of another config; {advice}")
    report = destination.read_tree(REPORT) or {}
    if report.get("request") != request:
        raise ValueError(
            f"{destination.name}: holds a dataset of the same config, but its corpus, tokenizer or "
            f"libraries were others; {advice}"
        )
    destination.tidy()
    return True


def publish(building: Building, destination: Destination) -> None:
    """Bring everything to the place of the dataset, the manifest last; remove the work folder."""
    work = building.work
    rows = _rows(building)
    manifest = _manifest(building, rows)
    work.publication.mkdir()
    report = _write_beside(building, rows, manifest, work.publication)
    destination.publish([row.shard for row in rows], work.publication, manifest)
    shutil.rmtree(work.root, ignore_errors=True)  # a job that outlived its build may write there
    show_report(report, destination.name)


def _rows(building: Building) -> list[ShardRow]:
    rows = []
    for planned in building.decision.plan.shards:
        row = written_row(building.work, planned)
        assert row is not None and row.shard.samples, f"{planned.name} was not written"
        rows.append(row)
    return rows


def _manifest(building: Building, rows: list[ShardRow]) -> Manifest:
    splits = {split: tuple(row.shard for row in rows if row.split == split) for split in SPLITS}
    return Manifest(
        kind=building.config.kind,
        splits={split: shards for split, shards in splits.items() if shards},
        config=byte_config(building.config),
        libraries=library_versions(building.config),
        **building.kind.manifest_fields(building.decision),
    )


def _write_beside(
    building: Building, rows: list[ShardRow], manifest: Manifest, staged: Path
) -> dict[str, Any]:
    """Everything but the shards and the manifest; returns the report."""
    building.kind.write_beside(staged)
    write_atomic(staged / "config.yaml", redact(to_yaml(building.config)).encode())
    members = [portion_member(portion.index) for portion in building.portions]
    members += [shard_member(planned.name) for planned in building.decision.plan.shards]
    join_rejects(building.work.rejects, members, staged / "rejects")
    write_sidecars(manifest, staged)
    report = build_report(
        building.decision,
        rows,
        kind=building.config.kind,
        request=building.request,
        corpus_files=len({file.url for portion in building.portions for file in portion.files}),
        corpus_bytes=sum(portion.bytes for portion in building.portions),
        seconds=time.monotonic() - building.started,
        stage_seconds=read_json(building.work.seconds) or {},
    )
    report |= building.kind.report_fields(building.work)
    write_report(report, staged)
    return report
