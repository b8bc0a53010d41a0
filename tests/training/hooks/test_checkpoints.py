"""The checkpoint hook: settle, save, remove what is old."""

import pytest

from training.checkpoint import find_last_good, list_checkpoints
from training.hooks.checkpoints import CheckpointHook


def test_metrics_are_settled_before_a_checkpoint_and_old_ones_go(info_of, tmp_path, capsys):
    events = []

    class FakeEngine:
        def save(self, folder):
            events.append("save")
            (folder / "weights").write_text("w")

    hook = CheckpointHook(
        tmp_path / "checkpoints",
        FakeEngine(),
        every_steps=3,
        keep=2,
        config="seed: 1\n",
        settle=lambda: events.append("settle"),
    )
    assert hook.every_n_steps == 3
    assert hook.pauses_training
    for step in (3, 6, 9):
        hook.on_step(info_of(step))
    assert events == ["settle", "save"] * 3
    folders = list_checkpoints(tmp_path / "checkpoints")
    assert [folder.name for folder in folders] == ["step-00000006", "step-00000009"]
    assert (folders[0] / "config.yaml").read_text() == "seed: 1\n"
    assert find_last_good(tmp_path / "checkpoints", warn=events.append) == folders[1]
    assert capsys.readouterr().out.count("checkpoint ") == 3


def test_a_full_disk_ends_the_run_only_at_its_end(info_of, tmp_path, capsys):
    class FullDisk:
        is_full = True

        def save(self, folder):
            (folder / "weights").write_text("w")
            if self.is_full:
                raise OSError("No space left on device")

    engine = FullDisk()
    hook = CheckpointHook(
        tmp_path, engine, every_steps=4, keep=2, config="seed: 1\n", settle=lambda: None
    )
    for step in (4, 8):
        engine.is_full = step == 8
        hook.on_step(info_of(step))
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000004"]
    (warning,) = capsys.readouterr().out.splitlines()[1:]
    assert warning.startswith("warning: checkpoint of step 8 not written to ")
    assert "No space left on device" in warning
    assert warning.endswith("untouched; training goes on, the next try is at step 10")
    with pytest.raises(OSError, match="checkpoint of step 10 not written"):
        hook.on_step(info_of(10))
    engine.is_full = False
    hook.on_step(info_of(10))
    assert find_last_good(tmp_path, warn=print) == tmp_path / "step-00000010"
