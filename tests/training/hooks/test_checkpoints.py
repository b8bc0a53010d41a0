"""The checkpoint hook: settle, save, remove what is old."""

from training.checkpoint import RunState, find_last_good, list_checkpoints
from training.hooks.checkpoints import CheckpointHook
from training.trainer import StepInfo


def info_of(step):
    state = RunState(
        step=step, samples_seen=0, skipped_steps=0, world_size=1, zero_stage=0, data_order="f"
    )
    return StepInfo(state, 10, 0.1, None, 1.0, 0.0)


def test_metrics_are_settled_before_a_checkpoint_and_old_ones_go(tmp_path, capsys):
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
