"""The same command again: what is finished is kept, what is damaged or outdated is not."""

import json
import os
import shutil

import pytest

from pipeline.build import build
from pipeline.refused import RefusedError
from pipeline.verify import verify


def test_a_complete_dataset_is_left_alone(config, digests, built, corpus, capsys):
    before = digests(built)
    times = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    build(config(corpus, built))
    assert "complete already" in capsys.readouterr().out
    assert digests(built) == before
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == times


def test_a_folder_of_a_build_killed_at_its_start_is_taken(config, digests, corpus, built, tmp_path):
    (tmp_path / ".work").mkdir()
    (tmp_path / ".lock").write_text("1")
    assert digests(build(config(corpus, tmp_path))) == digests(built)


def test_too_many_bad_records_fail_before_writing_and_a_rerun_reuses_reading(
    config, corpus, tmp_path, monkeypatch
):
    moved = shutil.copytree(corpus, tmp_path / "bad")
    with (moved / "b.jsonl").open("a") as file:
        file.write("{worse\n" * 30)
    dataset_dir = tmp_path / "dataset"
    with pytest.raises(RefusedError) as raised:
        build(config(moved, dataset_dir))
    message = str(raised.value)
    assert "31 of 451 records (6.87%) could not be read, max_bad_fraction allows 1.00%" in message
    assert "invalid_json 31 (first b.jsonl at " in message
    assert "\n" not in message
    assert not list(dataset_dir.rglob("*.tar"))
    monkeypatch.setattr("pipeline.read.read_portion", _die)  # by a second reading
    build(config(moved, dataset_dir, "max_bad_fraction=0.07"))
    report = json.loads((dataset_dir / "report.json").read_text())
    assert report["funnel"][0]["records_in"] == 451


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_spill_is_made_again(config, digests, built, corpus, tmp_path, monkeypatch, size):
    dataset_dir = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", _die)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, dataset_dir))
    spill = min((dataset_dir / ".work" / "spills").glob("*.arrow"))
    os.truncate(spill, size)
    for row in (dataset_dir / ".work" / "shards").rglob("*.json"):
        row.unlink()
    assert digests(build(config(corpus, dataset_dir))) == digests(built)


def test_an_outdated_work_folder_is_not_mixed_in(
    config, digests, built, corpus, tmp_path, monkeypatch
):
    """A build of other shards that died while publishing leaves tars that must go."""
    dataset_dir = tmp_path / "dataset"
    monkeypatch.setattr("pipeline.into_folder.write_manifest", _die)
    with pytest.raises(KeyboardInterrupt):
        build(config(corpus, dataset_dir, "shards.target_mib=0.01", "shuffle_seed=3"))
    assert len(list(dataset_dir.glob("*.tar"))) > len(list(built.glob("*.tar")))
    monkeypatch.undo()
    build(config(corpus, dataset_dir))
    assert {path.name for path in dataset_dir.iterdir()} == {path.name for path in built.iterdir()}
    assert digests(dataset_dir) == digests(built)


def test_sidecars_of_an_abandoned_split_go(config, corpus, tmp_path, monkeypatch):
    dataset_dir = tmp_path / "dataset"
    monkeypatch.setattr("pipeline.into_folder.write_manifest", _die)
    with pytest.raises(KeyboardInterrupt):
        build(config(corpus, dataset_dir))
    assert (dataset_dir / "validation.wids.json").exists()
    monkeypatch.undo()
    assert verify(build(config(corpus, dataset_dir, "split.fraction=0"))) == []


def _die(*_, **__):
    raise KeyboardInterrupt
