"""Damage of the report and of the rejects that it counts."""

import gzip
import json
import os

import pytest

QUALITY, READ = "rejects/quality.jsonl.gz", "rejects/read.jsonl.gz"
SHARD = "train-000001.tar"


def edit_report(change):
    def damage(folder):
        path = folder / "report.json"
        report = json.loads(path.read_text())
        change(report)
        path.write_text(json.dumps(report))

    return damage


def edit_rejects(change, name=READ):
    """A damage of the lines of a stage, with everything of gzip made to agree."""

    def damage(folder):
        lines = gzip.decompress((folder / name).read_bytes()).splitlines(keepends=True)
        (folder / name).write_bytes(gzip.compress(b"".join(change(lines))))

    return damage


def replace_in_page(folder):
    path = folder / "report.html"
    path.write_text(path.read_text().replace("1 corpus files", "2 corpus files"))


DAMAGES = {
    "rejects emptied": (
        lambda folder: (folder / READ).write_bytes(b""),
        [
            ("report", READ, "has 0 records of 0 bytes with reason a, report.json counts 1 of 7"),
            ("report", READ, "has 0 records of 0 bytes with reason b, report.json counts 1 of 7"),
        ],
    ),
    "rejects removed": (
        lambda folder: (folder / READ).unlink(),
        [("report", READ, "is missing; report.json counts rejects of this stage")],
    ),
    "a member of the gzip file lost": (
        edit_rejects(lambda lines: lines[:1]),
        [("report", READ, "has 0 records of 0 bytes with reason b, report.json counts 1 of 7")],
    ),
    "a reject twice": (
        edit_rejects(lambda lines: [*lines, lines[0]]),
        [("report", READ, "has 2 records of 14 bytes with reason a, report.json counts 1 of 7")],
    ),
    "a reject of other bytes": (
        edit_rejects(lambda lines: [lines[0].replace(b"7", b"8"), lines[1]]),
        [("report", READ, "has 1 records of 8 bytes with reason a, report.json counts 1 of 7")],
    ),
    "a reason that the report has not": (
        edit_report(lambda report: report["rejects"].pop()),
        [("report", READ, "has 1 records of 7 bytes with reason b, report.json counts 0 of 0")],
    ),
    "rejects of another stage": (
        lambda folder: (folder / READ).write_bytes((folder / QUALITY).read_bytes()),
        [("report", READ, "cannot be read behind line 0: is of stage 'quality'")],
    ),
    "a changed byte": (
        lambda folder: (folder / READ).write_bytes(
            bytes(byte ^ (i == 40) for i, byte in enumerate((folder / READ).read_bytes()))
        ),
        [("report", READ, "cannot be read behind line ")],
    ),
    "rejects cut": (
        lambda folder: os.truncate(folder / READ, 50),
        [("report", READ, "cannot be read behind line ")],
    ),
    "rejects that are no gzip file, no objects, none of ours": (
        lambda folder: [
            (folder / "rejects" / name).write_bytes(content)
            for name, content in [
                ("a.jsonl.gz", b"x"),
                ("b.jsonl.gz", gzip.compress(b"[]\n")),
                ("c.jsonl.gz", gzip.compress(b"{\n")),
                ("d.jsonl.gz", gzip.compress(b'{"reason": "a"}\n')),
                ("e.txt", b""),
            ]
        ],
        [
            ("report", "rejects/a.jsonl.gz", "behind line 0: Not a gzipped file"),
            ("report", "rejects/b.jsonl.gz", "behind line 0: is no object"),
            ("report", "rejects/c.jsonl.gz", "behind line 0: "),
            ("report", "rejects/d.jsonl.gz", "behind line 0: has the fields ['reason'], must"),
            ("files", "rejects/e.txt", "is no file of rejects"),
        ],
    ),
    "other samples": (
        edit_report(lambda report: report["shards"][1].update(samples=9)),
        [("report", "report.json", f"9 samples, 120 tokens, 10240 bytes of {SHARD}, the manifest")],
    ),
    "a shard less": (
        edit_report(lambda report: report["shards"].pop(1)),
        [("report", "report.json", f"has nothing of {SHARD}, the manifest 3 samples, 120 tokens")],
    ),
    "other sums": (
        edit_report(lambda report: report["splits"]["train"].update(tokens=1)),
        [("report", "report.json", "its sums of split train are not the manifest's")],
    ),
    "a split less": (
        edit_report(lambda report: report["splits"].pop("validation")),
        [("report", "report.json", "its sums of split validation are not the manifest's")],
    ),
    "a field less": (
        edit_report(lambda report: report.pop("rejects")),
        [("report", "report.json", "damaged (KeyError: 'rejects')")],
    ),
    "fields of other types": (
        edit_report(lambda report: report.update(shards=[1])),
        [("report", "report.json", "damaged (TypeError: ")],
    ),
    "another page": (replace_in_page, [("report", "report.html", "its sha256 is not that of")]),
    "half a page": (
        lambda folder: os.truncate(folder / "report.html", 500),
        [
            ("sidecars", "report.html", "it is no page, or not a whole one"),
            ("report", "report.html", "its sha256 is not that of report.json"),
        ],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named(text_dataset, damage, name):
    damage(text_dataset, *DAMAGES[name])


def test_a_page_of_a_report_without_its_sha256(text_dataset, damage):
    """As builds wrote them once."""
    edit_report(lambda report: report.pop("page_sha256"))(text_dataset)
    damage(text_dataset, replace_in_page, [])
