"""Publication: finished shards and everything beside them move into the dataset folder.

Whatever lies beside the manifest is there before it; a publication that was killed is repeated.
"""

import os
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
from pipeline.fingerprints import library_versions
from pipeline.index import write_sidecars
from pipeline.kind import Kind
from pipeline.lock import FILE_NAME as LOCK
from pipeline.manifest import (
    FILE_NAME,
    Manifest,
    hash_config,
    read_manifest,
    write_manifest,
)
from pipeline.portions import portion_member
from pipeline.rejects import join_rejects
from pipeline.report import REPORT, build_report, print_report, write_report
from pipeline.shards import ShardRow, finished_row, shard_member
from pipeline.split import SPLITS
from pipeline.tar import index_path
from pipeline.work import FOLDER, WorkFolder, is_work_folder, read_json, write_atomic


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


def already_published(dataset_dir: Path, *, request: str, config: dict[str, Any]) -> bool:
    """Whether the folder holds the very dataset that is asked for.

    Raises:
        ValueError: it holds another dataset, or files that no build of ours made.
    """
    if not (dataset_dir / FILE_NAME).exists():
        _refuse_strangers(dataset_dir)
        return False
    advice = "choose another dataset_dir, or delete this one"
    manifest = read_manifest(dataset_dir)
    if manifest.config_hash != hash_config(config):
        raise ValueError(f"{dataset_dir}: holds a dataset of another config; {advice}")
    report = read_json(dataset_dir / REPORT) or {}
    if report.get("request") != request:
        raise ValueError(
            f"{dataset_dir}: holds a dataset of the same config, but its corpus, tokenizer or "
            f"libraries were others; {advice}"
        )
    shutil.rmtree(dataset_dir / FOLDER, ignore_errors=True)  # of a build killed in its last moment
    return True


def publish(building: Building) -> None:
    """Move everything into the dataset folder, the manifest last, and remove the work folder."""
    work, dataset_dir = building.work, building.work.root.parent
    rows = _rows(building)
    manifest = _manifest(building, rows)
    staged = work.publication
    staged.mkdir()
    _write_beside(building, rows, manifest, staged)
    _remove_outdated(work, dataset_dir, {row.shard.name for row in rows})
    for row in rows:
        _move(work.shards / row.shard.name, dataset_dir)
    for path in sorted(staged.iterdir()):
        target = dataset_dir / path.name
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        path.replace(target)
    _sync(dataset_dir)
    write_manifest(manifest, dataset_dir)
    _sync(dataset_dir)
    shutil.rmtree(work.root)
    print_report(dataset_dir)


def _rows(building: Building) -> list[ShardRow]:
    rows = []
    for planned in building.decision.plan.shards:
        row = finished_row(building.work, planned)
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
) -> None:
    """Everything but the shards and the manifest."""
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
    write_report({**report, **building.kind.report_fields(building.work)}, staged)


def _refuse_strangers(dataset_dir: Path) -> None:
    """Files of the user's own would be overwritten: only a killed build's folder may hold any."""
    work = dataset_dir / FOLDER
    if is_work_folder(work):
        return
    found = sorted(path.name for path in dataset_dir.iterdir() if path != dataset_dir / LOCK)
    if work.is_dir() and not any(work.iterdir()):  # killed before it made the parts
        found.remove(FOLDER)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"{dataset_dir}: holds {found[0]}{more}, but no {FILE_NAME} and no unfinished build; "
            "choose another dataset_dir, or an empty folder"
        )


def _remove_outdated(work: WorkFolder, dataset_dir: Path, current: set[str]) -> None:
    """Shards that an earlier build of another plan finished, and perhaps moved already."""
    for row in work.shards.glob("*.json"):
        name = f"{row.stem}.tar"
        if name in current:
            continue
        for folder in (work.shards, dataset_dir):
            (folder / name).unlink(missing_ok=True)
            index_path(folder / name).unlink(missing_ok=True)
        row.unlink()
    for sidecar in dataset_dir.glob("*.wids.json"):  # of splits that may be no more
        sidecar.unlink()


def _move(tar: Path, dataset_dir: Path) -> None:
    """The index first, so that a tar in the dataset has one; the row tells which was moved."""
    for path in (index_path(tar), tar):
        if path.exists():
            path.replace(dataset_dir / path.name)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
