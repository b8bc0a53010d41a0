"""The rules for what lies in a dataset folder beside the contents of its tars."""

import json
from pathlib import Path
from typing import Any

import yaml

from pipeline import manifest as contract
from pipeline.index import CARD, ENERGON_FOLDER, card_front, render_sidecars
from pipeline.lock import FILE_NAME as LOCK
from pipeline.manifest import Manifest
from pipeline.split import SPLITS
from pipeline.tar import index_path
from pipeline.verify_report import FOLDER as REJECTS
from pipeline.verify_shard import Findings

RULES = {
    "files": "all files are there, and no others",
    "sidecars": "what lies beside the tars can be read, and agrees with the manifest",
}
KINDS = ("text", "image")
REPORTS = ("config.yaml", "report.html", "report.json")


def check_content(manifest: Manifest, findings: Findings) -> None:
    """Check that the manifest is of a dataset that this version knows, and of a whole one."""
    where = contract.FILE_NAME
    if manifest.kind not in KINDS:
        findings.add("manifest", where, f"is of kind {manifest.kind!a}, not {', '.join(KINDS)}")
    for split in sorted(set(manifest.splits) - set(SPLITS)):
        findings.add("manifest", where, f"has a split {split!a}; there are {', '.join(SPLITS)}")
    for split in sorted({"train", *manifest.splits}):
        if not manifest.splits.get(split):
            findings.add("manifest", where, f"lists no shard of {split!a}")


def check_files(dataset_dir: Path, manifest: Manifest, findings: Findings) -> None:
    """Check that the folder holds its files, all of them regular ones, and no others."""
    tars = [shard.name for shards in manifest.splits.values() for shard in shards]
    files = {
        contract.FILE_NAME,
        CARD,
        *REPORTS,
        *tars,
        *(index_path(Path(name)).name for name in tars),
    }
    files |= {f"{split}.wids.json" for split in manifest.splits}
    if manifest.tokenizer is not None:
        files.add(manifest.tokenizer.file)
    folders = {REJECTS, ENERGON_FOLDER}
    optional = {LOCK, *(Path(name).with_suffix(".idx").name for name in tars)}  # of DALI
    found = {path.name for path in dataset_dir.iterdir()}
    findings.checked["files"] += len(files | folders | found)
    for name in sorted((files | folders) - found):
        findings.add("files", name, "is missing")
    for name in sorted(found - files - folders - optional):
        message = "is not of this dataset: the manifest does not name it"
        findings.add("files", ascii(name)[1:-1], message)
    for name in sorted(found & (files | optional)):
        if not (dataset_dir / name).is_file():
            findings.add("files", name, "is no regular file, or a link to nothing")
    for name in sorted(found & folders):
        if not (dataset_dir / name).is_dir():
            findings.add("files", name, "is no folder")


def check_sidecars(dataset_dir: Path, manifest: Manifest, findings: Findings) -> None:
    """Check what other libraries and people read; what is missing is a fault of `files`."""
    expected = render_sidecars(manifest)
    for name in (*REPORTS, CARD, *expected):
        path = dataset_dir / name
        if not path.is_file():
            if path.parent.name == ENERGON_FOLDER and path.parent.is_dir():
                findings.add("files", name, "is missing")
            continue
        findings.checked["sidecars"] += 1
        try:
            tree = _read(path)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            message = " ".join(f"cannot be read: {error}".split())
            findings.add("sidecars", name, message)
            continue
        if name in expected and tree != expected[name]:
            message = "does not agree with the manifest; `python -m pipeline.index` renews it"
            findings.add("sidecars", name, message)
        elif name in (CARD, *REPORTS) and name != "report.html" and not isinstance(tree, dict):
            findings.add("sidecars", name, "holds no fields")
        elif name == CARD and tree.get("configs") != card_front(manifest)["configs"]:
            findings.add("sidecars", name, "its configs are not the splits of the manifest")


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".yaml":
        return yaml.safe_load(text)
    if path.name == CARD:
        parts = text.split("---\n", 2)
        if len(parts) < 3 or parts[0]:
            raise ValueError("it has no front matter")
        return yaml.safe_load(parts[1])
    if not text.startswith("<!doctype html>") or not text.endswith("</html>\n"):
        raise ValueError("it is no page, or not a whole one")
    return text
