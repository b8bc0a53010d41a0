"""`python -m pipeline.verify DATASET`: re-reads a dataset and checks every rule of its format.

DATASET is a folder, or a URL, whose tars come into `TMPDIR` one for each core.
Prints a row per rule with what was checked and the first faults; exit code 1 on any fault, 2 where
there is no dataset to verify. Nothing is written.
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import xxhash
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs import command
from configs.redact import redact
from pipeline import manifest as contract
from pipeline.encoder import token_dtype
from pipeline.hashes import Hashes
from pipeline.manifest import Manifest, Shard
from pipeline.mirror import Mirror, mirror_of
from pipeline.tar import scan
from pipeline.tokenizer import parse_tokenizer, special_tokens
from pipeline.transfer import bytes_progress
from pipeline.verify_files import RULES as FILE_RULES
from pipeline.verify_files import check_content, check_files, check_sidecars
from pipeline.verify_images import RULES as IMAGE_RULES
from pipeline.verify_images import ImageRules
from pipeline.verify_report import FOLDER as REJECTS
from pipeline.verify_report import RULES as REPORT_RULES
from pipeline.verify_report import check_report
from pipeline.verify_shard import RULES as SHARD_RULES
from pipeline.verify_shard import Fault, Findings, SampleRules, verify_shard
from pipeline.verify_text import RULES as TEXT_RULES
from pipeline.verify_text import TextRules

RULES = {
    "manifest": "manifest.json is whole and agrees with itself",
    **FILE_RULES,
    **REPORT_RULES,
    "tokenizer": "the tokenizer is the manifest's, and the token type holds its ids",
    **SHARD_RULES,
    "keys": "keys are unique over the dataset",
    **TEXT_RULES,
    **IMAGE_RULES,
}
EXAMPLES = 3
"""Faults shown of each rule; `--all` shows every one."""


def main(argv: Sequence[str]) -> None:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL with a manifest.json")
    parser.add_argument("--all", action="store_true", help="show every fault, not the first three")
    arguments = parser.parse_args(argv)
    findings = verify_dataset(arguments.dataset, console=Console(stderr=True))
    shown = len(findings.faults) if arguments.all else EXAMPLES
    Console().print(render_table(redact(arguments.dataset), findings, examples=shown))
    sys.exit(1 if findings.faults else 0)


def verify(dataset_dir: str | Path) -> list[Fault]:
    """Every fault of a dataset.

    Raises:
        FileNotFoundError: the folder holds no dataset.
        StoreError: the store does not give it.
    """
    return verify_dataset(dataset_dir).faults


def verify_dataset(dataset: str | Path, *, console: Console | None = None) -> Findings:
    """What was checked and what was found; progress goes to the console."""
    findings = Findings()
    with mirror_of(dataset) as mirror:
        manifest = _verify_manifest(mirror, findings)
        if manifest is not None:
            _verify_files(mirror, manifest, findings, console)
    return findings


def _verify_files(
    mirror: Mirror, manifest: Manifest, findings: Findings, console: Console | None
) -> None:
    dataset_dir = mirror.folder
    if mirror.store is not None:  # which keeps no empty folder
        (dataset_dir / REJECTS).mkdir(exist_ok=True)
    check_content(manifest, findings)
    check_files(dataset_dir, manifest, findings)
    check_sidecars(dataset_dir, manifest, findings)
    check_report(dataset_dir, manifest, findings)
    _verify_tokenizer(dataset_dir, manifest, findings)
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    present = [shard for shard in shards if (dataset_dir / shard.name).is_file()]
    hashes: dict[str, Hashes] = {}
    by_shard: dict[str, Findings] = {}
    for shard, found in _verify_shards(mirror, manifest, present, console):
        by_shard[shard.name] = found
        hashes[shard.name] = _hash_keys(found.keys)
        found.keys.clear()
    for shard in present:
        findings.extend(by_shard[shard.name])
    _verify_extensions(present, by_shard, findings)
    _verify_keys(mirror, hashes, findings)


def render_table(dataset: str | Path, findings: Findings, *, examples: int = EXAMPLES) -> Table:
    """A row per rule that was checked."""
    verdict = f"{len(findings.faults)} faults" if findings.faults else "no fault"
    table = Table(title=f"{dataset}: {verdict}", title_justify="left")
    table.add_column("rule")
    table.add_column("checked", justify="right")
    table.add_column("faults", justify="right")
    if findings.faults:
        table.add_column("first faults", overflow="fold", ratio=1)
    for rule, meaning in RULES.items():
        faults = [fault for fault in findings.faults if fault.rule == rule]
        if not findings.checked[rule] and not faults:
            continue
        shown = [f"{fault.where}: {fault.message}" for fault in faults[:examples]]
        if len(faults) > examples:
            shown.append(f"and {len(faults) - examples} more")
        cells: list[str | Text] = [
            Text.assemble((rule, "bold"), f": {meaning}"),
            f"{findings.checked[rule]:,}",
            Text(f"{len(faults):,}", "bold red" if faults else "green"),
            Text("\n".join(shown)),
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _verify_manifest(mirror: Mirror, findings: Findings) -> Manifest | None:
    findings.checked["manifest"] += 1
    try:
        return mirror.manifest()
    except ValueError as error:
        findings.add("manifest", contract.FILE_NAME, str(error))
        return None


def _verify_tokenizer(dataset_dir: Path, manifest: Manifest, findings: Findings) -> None:
    row = manifest.tokenizer
    if row is None:
        if manifest.kind == "text":
            findings.add("tokenizer", contract.FILE_NAME, "names no tokenizer")
        return
    findings.checked["tokenizer"] += 1
    if manifest.token_dtype != token_dtype(row.vocab_size).name:
        message = f"{manifest.token_dtype} is not the type for {row.vocab_size} ids"
        findings.add("tokenizer", contract.FILE_NAME, message)
    path = dataset_dir / row.file
    if not path.is_file():
        return
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != row.sha256:
        findings.add("tokenizer", row.file, f"its sha256 is not the manifest's {row.sha256}")
        return
    try:
        tokenizer = parse_tokenizer(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        findings.add("tokenizer", row.file, f"cannot be read: {' '.join(str(error).split())}")
        return
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if size != row.vocab_size:
        findings.add("tokenizer", row.file, f"has {size} ids, the manifest says {row.vocab_size}")
    if row.end_of_document not in special_tokens(tokenizer).values():
        message = f"id {row.end_of_document}, the end of document, is no special token"
        findings.add("tokenizer", row.file, message)


def _verify_shards(
    mirror: Mirror, manifest: Manifest, shards: list[Shard], console: Console | None
) -> Iterator[tuple[Shard, Findings]]:
    """Verify shards in threads: sha256 and crc32, three quarters of the time, run beside Python."""
    total = sum(shard.bytes for shard in shards)
    with bytes_progress(console) as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
        bar = progress.add_task("verifying", total=total)
        started = {
            threads.submit(_verify_shard, mirror, shard, _rules(manifest)): shard
            for shard in shards
        }
        for future in as_completed(started):
            progress.advance(bar, started[future].bytes)
            yield started[future], future.result()


def _verify_shard(mirror: Mirror, shard: Shard, rules: SampleRules | None) -> Findings:
    with mirror.whole(shard.name) as path:
        return verify_shard(path, shard, rules)


def _rules(manifest: Manifest) -> SampleRules | None:
    if manifest.kind == "image":
        return ImageRules(len(manifest.classes))
    if manifest.kind != "text" or manifest.tokenizer is None or manifest.token_dtype is None:
        return None
    return TextRules(
        token_dtype=np.dtype(manifest.token_dtype),
        vocab_size=manifest.tokenizer.vocab_size,
        end_of_document=manifest.tokenizer.end_of_document,
    )


def _hash_keys(keys: list[str]) -> Hashes:
    return np.array(
        [xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape")) for key in keys],
        np.uint64,
    )


def _verify_extensions(
    shards: list[Shard], by_shard: dict[str, Findings], findings: Findings
) -> None:
    first = next((found.extensions for found in by_shard.values() if found.extensions), ())
    for shard in shards:
        found = by_shard[shard.name].extensions
        if found and found != first:
            message = f"samples of {', '.join(found)}; other shards have {', '.join(first)}"
            findings.add("extensions", shard.name, message)


def _verify_keys(mirror: Mirror, hashes: dict[str, Hashes], findings: Findings) -> None:
    """Find keys that occur twice by 8 bytes a key; only shards with equal hashes are read again."""
    every = np.concatenate([np.empty(0, np.uint64), *hashes.values()])
    findings.checked["keys"] += len(every)
    values, counts = np.unique(every, return_counts=True)
    twice = values[counts > 1]
    places: dict[str, list[str]] = {}
    for name in sorted(name for name in hashes if np.isin(hashes[name], twice).any()):
        previous = ""
        with mirror.whole(name) as path:
            for member in scan(path):
                if member.key != previous:
                    places.setdefault(member.key, []).append(name)
                previous = member.key
    for key, names in places.items():
        if len(names) > 1:
            numbers = Counter(names)
            message = f"occurs in {', '.join(numbers)}" if len(numbers) > 1 else "occurs twice"
            findings.add("keys", f"{names[0]}: {key}", message)


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))
