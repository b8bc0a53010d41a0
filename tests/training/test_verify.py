"""`python -m training.verify`: a line for each checkpoint, every damage by name."""

import sys

import pytest

from training import verify
from training.saving import save_checkpoint


@pytest.fixture
def run_dir(tmp_path, state_of):
    for step in (500, 1000):
        state = state_of(step, samples_seen=12 * step, world_size=2, zero_stage=3)
        take = lambda folder: {folder / "deepspeed/weights.pt": b"w" * 1000}  # noqa: E731
        save_checkpoint(tmp_path / "run/checkpoints", state, take, "a: 1\n")
    return tmp_path / "run"


@pytest.fixture
def command(monkeypatch, capsys):
    def call(folder):
        monkeypatch.setattr(sys, "argv", ["verify", str(folder)])
        with pytest.raises(SystemExit) as end:
            verify.main()
        return end.value.code, capsys.readouterr().out.splitlines()

    return call


def test_all_are_good(run_dir, command):
    code, lines = command(run_dir)
    folder = run_dir / "checkpoints"
    written = "written by 2 ranks at ZeRO stage 3"
    assert code == 0
    assert lines == [
        f"{folder}/step-00000500: good, 0.00 GiB, 6,000 samples seen, {written}",
        f"{folder}/step-00001000: good, 0.00 GiB, 12,000 samples seen, {written}",
        "2 of 2 checkpoints are good; the last good one is step-00001000",
    ]
    assert command(folder / "step-00000500") == (
        0,
        [lines[0], "1 of 1 checkpoints are good; the last good one is step-00000500"],
    )


def test_damage_is_named(run_dir, command):
    newest = run_dir / "checkpoints/step-00001000"
    with (newest / "deepspeed/weights.pt").open("r+b") as file:
        file.write(b"v")
    (newest / "config.yaml").unlink()
    code, lines = command(run_dir)
    assert code == 1
    assert lines[1] == (
        f"{newest}: config.yaml is missing; deepspeed/weights.pt has another sha256 than written"
    )
    assert lines[2] == "1 of 2 checkpoints are good; the last good one is step-00000500"


def test_nothing_to_verify(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint; give a run folder"):
        dict(verify.verify(tmp_path))
