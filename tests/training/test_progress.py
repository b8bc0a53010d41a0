"""`python -m training.progress`: whether a script should start a run again."""

import sys

import pytest

from training import progress


@pytest.fixture
def command(monkeypatch, capsys):
    def call(folder):
        monkeypatch.setattr(sys, "argv", ["progress", str(folder)])
        with pytest.raises(SystemExit) as end:
            progress.main()
        return end.value.code, capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("checkpoints", "code", "step"),
    [((), 3, "0"), ((500, 1000), 3, "1,000"), ((1500,), 0, "1,500"), ((500, 1501), 0, "1,501")],
)
def test_finished_or_not(tmp_path, command, checkpoints, code, step):
    (tmp_path / "config.yaml").write_text("num_steps: 1500\n")
    for number in checkpoints:
        (tmp_path / f"checkpoints/step-{number:08d}").mkdir(parents=True)
    assert command(tmp_path) == (code, f"{tmp_path}: checkpoint of step {step} of 1,500\n")


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder, it has no config.yaml"):
        progress.progress(tmp_path)
