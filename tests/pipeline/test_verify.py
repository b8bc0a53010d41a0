"""The verb: its table, its exit codes, and what it allows."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.verify import EXAMPLES, RULES, main, verify
from pipeline.verify_images import RULES as IMAGE_RULES

SHARD = "train-000001.tar"


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace_file(name, make):
    """A damage that puts something else into the place of a file."""

    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


def add(name):
    return lambda folder: (folder / name).write_bytes(b"x")


def edit_manifest(change):
    """A damage of the manifest's text."""

    def damage(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def test_whole_dataset_has_no_fault(text_dataset):
    assert verify(text_dataset) == []


def test_files_of_others_are_allowed(text_dataset):
    for name in ("train-000000.idx", ".lock", ".nv-meta/index.sqlite"):
        add(name)(text_dataset)
    assert verify(text_dataset) == []


def run_verb(capsys, *argv):
    with pytest.raises(SystemExit) as exit_code:
        main([str(word) for word in argv])
    return exit_code.value.code, capsys.readouterr().out


def test_table_of_a_whole_dataset(text_dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # the path in the title may be long
    code, out = run_verb(capsys, text_dataset)
    assert code == 0
    assert "no fault" in out
    assert [rule for rule in RULES if f"{rule}:" not in out] == list(IMAGE_RULES)


def test_table_of_names_that_are_no_text(text_dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    edit_manifest(lambda t: {**t, "tokenizer": {**t["tokenizer"], "sha256": "\ud800"}})(
        text_dataset
    )
    (text_dataset / os.fsdecode(b"a\xff")).write_bytes(b"")
    code, out = run_verb(capsys, text_dataset)
    assert code == 1
    assert "ud800" in out
    assert "udcff" in out


def test_table_shows_the_first_faults(text_dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for index in range(EXAMPLES + 2):
        add(f"extra-{index}")(text_dataset)
    code, out = run_verb(capsys, text_dataset)
    assert code == 1
    assert "5 faults" in out
    assert [f"extra-{index}: is not" in out for index in range(5)] == [True] * 3 + [False] * 2
    assert "and 2 more" in out
    _, out = run_verb(capsys, text_dataset, "--all")
    assert "extra-4: is not" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda _: None, 0),
        (remove(SHARD), 1),
        (replace_file(SHARD, lambda path: path.symlink_to("/nonexistent/blob")), 1),
        (edit_manifest(lambda tree: {**tree, "splits": {"train": [None]}}), 1),
        (remove("manifest.json"), 2),
    ],
)
def test_exit_code_of_the_verb(text_dataset, damage, code):
    damage(text_dataset)
    command = [sys.executable, "-m", "pipeline.verify", str(text_dataset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("no manifest.json, so no complete dataset" in done.stderr) == (code == 2)
