"""Builds that are refused or fail: a user's mistake and bad data are told in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.lock import DatasetLock
from pipeline.manifest import read_manifest
from pipeline.refused import RefusedError
from pipeline.runner import StageError

ROOT = Path(__file__).resolve().parents[2]


def test_another_config_is_refused(config, built, corpus):
    with pytest.raises(ValueError, match=r"another config; choose another dataset_dir, or delete"):
        build(config(corpus, built, "shuffle_seed=5"))


def test_a_changed_corpus_is_refused(config, built, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    (moved / "b.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ValueError, match="of the same config, but its corpus"):
        build(config(moved, built))


@pytest.mark.parametrize(
    "name",
    ["train-000000.tar", "config.yaml", "report.html", "rejects/notes.txt", ".work/notes.txt"],
)
def test_files_of_the_user_are_not_overwritten(config, corpus, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"precious")
    expected = rf"holds {name.split('/')[0]}, but no manifest.json .*or an empty folder"
    with pytest.raises(ValueError, match=expected):
        build(config(corpus, tmp_path))
    assert path.read_bytes() == b"precious"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


def test_a_dataset_inside_of_its_corpus_is_refused(config, corpus):
    with pytest.raises(ValueError, match="lies in the folder .* of the corpus"):
        build(config(corpus, corpus / "dataset"))


def test_a_second_build_of_the_folder_is_refused(config, corpus, tmp_path):
    with (
        DatasetLock(tmp_path / "dataset"),
        pytest.raises(ValueError, match=rf"another build \(process {os.getpid()}\)"),
    ):
        build(config(corpus, tmp_path / "dataset"))


def test_no_document_left(config, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n' * 3 + "{bad\n")
    for kind in ("train", "characters"):
        told = r"no documents are left \(read 4 -> 3, normalise 3 -> 3, quality 3 -> 0, .*\)\. "
        told += r"gopher_short_doc 3 \(first a.jsonl at 0: .*\); invalid_json 1 \(first a.jsonl at"
        with pytest.raises(ValueError, match=told):
            build(config(path, tmp_path / kind, f"tokenizer.kind={kind}"))
    loose = ["tokenizer.kind=characters", "quality.enabled=false", "split.documents=1"]
    loose += ["max_bad_fraction=1"]
    with pytest.raises(RefusedError, match="takes all documents and leaves none to train on"):
        build(config(path, tmp_path / "dataset", *loose))


def test_no_document_left_with_a_tokenizer_given(config, built, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n' * 3)
    given = ["tokenizer.kind=load", f"tokenizer.path={built / 'tokenizer.json'}"]
    expected = r"no documents are left .*quality 3 -> 0.*gopher_short_doc 3 \(first a.jsonl"
    with pytest.raises(RefusedError, match=expected):
        build(config(path, tmp_path / "dataset", *given))


def test_a_vocabulary_smaller_than_asked_for_is_told(config, built, corpus, tmp_path, caplog):
    assert "asked for" not in caplog.text
    dataset_dir = build(config(corpus, tmp_path / "dataset", "tokenizer.vocab_size=5000"))
    made = read_manifest(dataset_dir).tokenizer.vocab_size
    assert 300 < made < 5000
    (said,) = [one for one in caplog.messages if "asked for" in one]
    assert said.startswith(f"tokenizer.vocab_size: 5000 tokens asked for, {made} made: nothing is")
    assert "\n" not in said


def test_an_error_in_a_stage_is_one_line(config, corpus, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device", "/disk/spill")

    monkeypatch.setattr("pipeline.shuffle.write_spill", fails)
    with pytest.raises(StageError) as raised:
        build(config(corpus, tmp_path / "dataset"))
    message = str(raised.value)
    assert message.startswith("OSError: [Errno 28] No space left on device: '/disk/spill'")
    assert "free space and run the same command again: what is finished is kept" in message
    assert "\n" not in message


@pytest.mark.slow
def test_command_exit_codes(corpus, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True
        )

    path = tmp_path / "c.yaml"
    path.write_text(f"dataset_dir: {tmp_path}/d\ncorpus: {{format: jsonl, path: [/nowhere]}}\n")
    missing = run(str(path), "num_workers=1")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "/nowhere: no such file or folder" in missing.stderr
    unknown = run(str(path), "shuffle_sed=1")
    assert unknown.returncode == 2
    assert "did you mean 'shuffle_seed'" in unknown.stderr


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_one_line(corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "bad")
    (moved / "c.jsonl").write_text("{worse\n" * 30)
    path = tmp_path / "c.yaml"
    path.write_text(config_yaml(moved, tmp_path / "dataset"))
    command = [sys.executable, "-m", "pipeline", str(path), "num_workers=2"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in failed.stderr.splitlines() if " MB/s" not in line]
    assert " of disk while it is built, " in lines.pop(0)
    assert failed.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: 31 of 451 records (6.87%) could not be read")
    assert lines[0].endswith("max_bad_fraction=0.0688: what was read is kept")
    assert not (tmp_path / "dataset" / ".work" / "error.log").exists()


def config_yaml(corpus, dataset_dir):
    return (
        f"dataset_dir: {dataset_dir}\n"
        f"corpus: {{format: jsonl, path: [{corpus}]}}\n"
        "tokenizer: {vocab_size: 300}\n"
    )
