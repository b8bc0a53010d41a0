"""The checkpoint hook: settle, save, publish what the background has written, remove old ones."""

import threading

import pytest

from training import saving
from training.checkpoint import Config, find_last_good, list_checkpoints
from training.hooks.checkpoints import CheckpointHook


class FakeEngine:
    def __init__(self):
        self.is_full = False

    def take_files(self, folder):
        if self.is_full:
            raise OSError("No space left on device")
        return {folder / "weights": "w"}


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def build(tmp_path, engine):
    def hook(settle=lambda: None, **settings):
        return CheckpointHook(
            tmp_path / "checkpoints", engine, Config(**settings), config="seed: 1\n", settle=settle
        )

    return hook


@pytest.fixture
def steps(tmp_path):
    return lambda: [int(path.name[5:]) for path in list_checkpoints(tmp_path / "checkpoints")]


def test_metrics_are_settled_before_a_checkpoint_and_old_ones_go(
    info_of, build, steps, tmp_path, capsys
):
    events = []
    hook = build(settle=lambda: events.append(steps()), every_steps=3, keep=2)
    assert hook.every_n_steps == 3
    assert hook.pauses_training
    for step in (3, 6, 9):
        hook.on_step(info_of(step))
    assert events == [[], [3], [3, 6]]
    assert steps() == [6, 9]
    folders = list_checkpoints(tmp_path / "checkpoints")
    assert (folders[0] / "config.yaml").read_text() == "seed: 1\n"
    assert find_last_good(tmp_path / "checkpoints", warn=events.append) == folders[1]
    assert capsys.readouterr().out.count("checkpoint ") == 3


def test_every_nth_is_kept(info_of, build, steps):
    hook = build(every_steps=1, keep=1, keep_every_steps=4)
    for step in range(1, 11):
        hook.on_step(info_of(step))
    assert steps() == [4, 8, 10]


def test_a_full_disk_ends_the_run_only_at_its_end(info_of, build, engine, steps, capsys):
    hook = build(every_steps=4)
    for step in (4, 8):
        engine.is_full = step == 8
        hook.on_step(info_of(step))
    assert steps() == [4]
    (warning,) = capsys.readouterr().out.splitlines()[1:]
    assert warning.startswith("warning: checkpoint of step 8 not written to ")
    assert "No space left on device" in warning
    assert warning.endswith("untouched; training goes on, the next try is at step 10")
    with pytest.raises(OSError, match="checkpoint of step 10 not written"):
        hook.on_step(info_of(10))
    engine.is_full = False
    hook.on_step(info_of(10))
    assert steps() == [4, 10]


@pytest.fixture
def disk(monkeypatch):
    """A disk that writes when it is told to, or is full."""

    class Disk:
        ready = threading.Event()
        is_full = False

    write = saving.write_files

    def waiting(*arguments):
        assert Disk.ready.wait(10)
        if Disk.is_full:
            raise OSError("No space left on device")
        return write(*arguments)

    monkeypatch.setattr(saving, "write_files", waiting)
    return Disk


def test_a_rollback_finds_a_checkpoint_at_the_end_alone(info_of, build, steps):
    """What a rollback asks for: publish what is in the background, of which there is nothing."""
    hook = build(every_steps=0, asynchronous=True)
    hook.on_step(info_of(3))
    hook.publish(info_of(3))
    assert steps() == []
    hook.on_step(info_of(10))
    assert steps() == [10]


def test_the_background_publishes_at_a_later_step(info_of, build, steps, disk, capsys):
    hook = build(every_steps=4, asynchronous=True)
    for step in range(1, 8):
        hook.on_step(info_of(step))  # waits for nothing
    assert steps() == []
    disk.ready.set()
    hook.on_step(info_of(8))  # never two at once: the one of step 4 comes first
    assert steps() == [4]
    hook.saving.abandon()  # until it is written
    hook.on_step(info_of(9))
    assert steps() == [4, 8]
    hook.on_step(info_of(10))
    assert steps() == [8, 10]  # the last one at once
    hook.on_end()
    lines = capsys.readouterr().out.splitlines()
    kinds = [" in the background, out of 0.00 GiB of host memory on rank 0" in x for x in lines]
    assert kinds == [True, True, False]


def test_a_full_disk_in_the_background(info_of, build, steps, disk, capsys):
    hook = build(every_steps=4, asynchronous=True)
    disk.is_full = True
    disk.ready.set()
    hook.on_step(info_of(4))
    hook.saving.abandon()
    hook.on_step(info_of(5))
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: checkpoint of step 4 not written to ")
    assert warning.endswith("training goes on, the next try is at step 8")
    with pytest.raises(OSError, match="checkpoint of step 10 not written"):
        hook.on_step(info_of(10))
    assert steps() == []


def test_behind_an_error_nothing_is_published(info_of, build, steps, disk):
    hook = build(every_steps=4, asynchronous=True)
    hook.on_step(info_of(4))
    disk.ready.set()
    hook.on_end()
    assert steps() == []
