"""Metrics: rows of every step, TensorBoard's scalars, the console."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from training.events import EventFile
from training.hooks import metrics
from training.hooks.metrics import Config, MetricsHook
from training.trainer import StepInfo

NUM_STEPS = 7


@dataclass
class Result:
    loss: torch.Tensor
    num_targets: torch.Tensor
    grad_norm: torch.Tensor | float
    skipped: bool
    loss_scale: float
    wants_stop: bool = False


@pytest.fixture
def info_of(state_of):
    """Step n takes 2 s, half a second of it waiting."""

    def build(step, *, loss=None):
        result = Result(
            loss=torch.tensor(3.0 - step / 8 if loss is None else loss),
            num_targets=torch.tensor(100 + step),
            grad_norm=torch.tensor(step / 2) if step % 2 else step / 2,
            skipped=step % 3 == 0,
            loss_scale=1024.0,
        )
        state = state_of(step, samples_seen=8 * step, skipped_steps=step // 3)
        return StepInfo(state, NUM_STEPS, step / 1000, result, 2.0 * step, 0.5 * step)

    return build


def row_of(step):
    return {
        "step": step,
        "loss": 3.0 - step / 8,
        "grad_norm": step / 2,
        "learning_rate": step / 1000,
        "loss_scale": 1024.0,
        "skipped_steps": step // 3,
        "samples_seen": 8 * step,
        "num_targets": 100 + step,
    }


@pytest.fixture
def hook_at(tmp_path, state_of):
    def build(step, every_steps=3):
        hook = MetricsHook(
            tmp_path,
            EventFile(tmp_path, first_step=step + 1),
            every_steps=every_steps,
            global_batch_size=8,
            unit="tokens",
            units_per_sample=10,
        )
        hook.on_start(state_of(step))
        return hook

    return build


def test_rows_of_every_step(info_of, hook_at, capsys):
    hook = hook_at(0)
    for step in range(1, NUM_STEPS + 1):
        hook.on_step(info_of(step))
    hook.on_end()
    assert hook.log.rows() == [row_of(step) for step in range(1, NUM_STEPS + 1)]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 3/7", "step 6/7", "step 7/7"]
    assert lines[0] == (
        "step 3/7  loss 2.6250  learning rate 3.00e-03  gradient norm 1.50  40 tokens/s  "
        "data wait 25.0%  0:00:08 left  skipped 1"
    )


def test_no_tensor_is_read_between_the_reports(info_of, hook_at):
    hook = hook_at(0, every_steps=3)
    hook.on_step(info_of(1))
    hook.on_step(info_of(2))
    assert hook.log.rows() == []
    hook.on_step(info_of(3))
    assert [row["step"] for row in hook.log.rows()] == [1, 2, 3]


def test_a_checkpoint_is_never_ahead_of_the_metrics(info_of, hook_at, scalars, capsys):
    hook = hook_at(0, every_steps=3)
    for step in (1, 2):
        hook.on_step(info_of(step))
    hook.settle()
    assert hook.log.rows() == [row_of(1), row_of(2)]
    assert [step for step, _ in scalars(hook.log.path.parent)["train/loss"]] == [1, 2]
    hook.settle()
    hook.on_step(info_of(3))
    assert hook.log.rows() == [row_of(1), row_of(2), row_of(3)]
    assert "40 tokens/s" in capsys.readouterr().out  # over all three steps


def test_rows_are_written_behind_an_error(info_of, hook_at):
    hook = hook_at(0)
    hook.on_step(info_of(1))
    hook.on_end()
    assert hook.log.rows() == [row_of(1)]


def test_a_resumed_run_writes_every_step_once(info_of, hook_at, scalars, tmp_path):
    killed = hook_at(0, every_steps=1)
    for step in range(1, 6):
        killed.on_step(info_of(step))
    resumed = hook_at(3, every_steps=1)
    for step in range(4, NUM_STEPS + 1):
        resumed.on_step(info_of(step))
    resumed.on_end()
    assert resumed.log.rows() == [row_of(step) for step in range(1, NUM_STEPS + 1)]
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == list(range(1, NUM_STEPS + 1))


def test_a_run_that_starts_anew_replaces_what_was_logged(info_of, hook_at, scalars, tmp_path):
    """Killed before its first checkpoint."""
    killed = hook_at(0, every_steps=1)
    for step in (1, 2, 3):
        killed.on_step(info_of(step))
    again = hook_at(0, every_steps=1)
    for step in (1, 2):
        again.on_step(info_of(step))
    again.on_end()
    assert again.log.rows() == [row_of(1), row_of(2)]
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2]


def test_tensorboard(info_of, hook_at, scalars, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_memory_gib", lambda: 1.5)
    hook = hook_at(0)
    for step in range(1, NUM_STEPS + 1):
        hook.on_step(info_of(step))
    hook.on_end()
    steps = range(1, NUM_STEPS + 1)
    expected = {
        f"train/{name}": [(step, row_of(step)[name]) for step in steps]
        for name in (
            *("loss", "learning_rate", "grad_norm", "skipped_steps", "loss_scale", "samples_seen"),
        )
    }
    reports = {"tokens_per_second": 40.0, "step_seconds": 2.0, "data_wait_share": 0.25}
    for name, value in (reports | {"memory_gib": 1.5}).items():
        expected[f"speed/{name}"] = [(3, value), (6, value), (7, value)]
    found = scalars(tmp_path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in values]
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in values], rel=1e-6)


def test_a_loss_that_is_not_finite_is_told(info_of, hook_at, capsys):
    hook = hook_at(0)
    hook.on_step(info_of(1))
    hook.on_step(info_of(2, loss=math.nan))
    hook.on_step(info_of(3))
    assert "warning: a loss among steps 1 to 3 is not finite" in capsys.readouterr().out
    assert hook.log.rows()[1]["loss"] is None


def test_a_full_disk_costs_no_step_and_no_row(
    info_of, hook_at, full_disk, scalars, tmp_path, capsys
):
    hook = hook_at(0, every_steps=1)
    hook.on_step(info_of(1))
    with full_disk(200):
        for step in range(2, NUM_STEPS):
            hook.on_step(info_of(step))
        assert hook.log.rows() == [row_of(1)]
    out = capsys.readouterr().out
    assert out.count(f"warning: {hook.log.path} cannot be written") == 1
    assert out.count(f"warning: {hook.events.file.path} cannot be written") == 1
    assert [f"step {step}/7" in out for step in range(1, NUM_STEPS)] == [True] * 6
    hook.on_step(info_of(NUM_STEPS))
    hook.on_end()
    assert hook.log.rows() == [row_of(step) for step in range(1, NUM_STEPS + 1)]
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == list(range(1, NUM_STEPS + 1))
    assert f"{hook.log.path} is written again\n" in capsys.readouterr().out


def test_other_ranks_write_nothing(info_of, state_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    hook = MetricsHook(
        tmp_path, None, every_steps=1, global_batch_size=8, unit="tokens", units_per_sample=10
    )
    hook.on_start(state_of(0))
    hook.on_step(info_of(1))
    hook.on_end()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_memory_of_this_process_is_told():
    status = Path("/proc/self/status").read_text()
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    if not torch.cuda.is_available():
        assert metrics._memory_gib() == pytest.approx(peak_kib / 2**20, rel=0.2)


def test_reports_at_no_step():
    with pytest.raises(ValueError, match="every_steps must be at least 1, found 0"):
        Config(every_steps=0)
