"""The lock of a run folder: one run at a time, and nothing is left of one that was refused."""

import os

import pytest

from training import run_lock
from training.run_lock import hold_run_dir


def refused(run_dir):
    with pytest.raises(ValueError, match="resume=required"), hold_run_dir(run_dir):
        assert (run_dir / ".lock").read_text() == str(os.getpid())
        raise ValueError("resume=required")


def test_a_refused_run_leaves_no_folder(tmp_path):
    refused(tmp_path / "runs/mistyped")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "runs/empty").mkdir(parents=True)
    refused(tmp_path / "runs/empty")
    refused(tmp_path / "runs/mistyped")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "empty"]


def test_a_run_that_has_written_something_keeps_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), hold_run_dir(tmp_path / "run"):
        (tmp_path / "run/config.yaml").write_text("seed: 1\n")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "config.yaml", "run"]


def test_a_second_run_is_refused_and_leaves_the_lock_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.0)
    told = rf"run: another run \(process {os.getpid()}\) is writing there; wait for its end"
    with hold_run_dir(tmp_path / "run"):
        with pytest.raises(ValueError, match=told), hold_run_dir(tmp_path / "run"):
            pass
        assert (tmp_path / "run/.lock").read_text() == str(os.getpid())
    with hold_run_dir(tmp_path / "run"):
        pass


def test_a_lock_that_its_holder_has_removed_is_none(tmp_path, monkeypatch):
    """Between our open and our lock: who comes third would find another file, and lock it."""
    run_dir, lock = tmp_path / "run", run_lock.fcntl.flock

    def remove_first(descriptor, how):
        monkeypatch.setattr(run_lock.fcntl, "flock", lock)
        (run_dir / ".lock").unlink()
        run_dir.rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(run_lock.fcntl, "flock", remove_first)
    with hold_run_dir(run_dir):
        assert (run_dir / ".lock").read_text() == str(os.getpid())
