"""The log of steps: every row once, also behind a kill."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.step_log import StepLog


@pytest.fixture
def log(tmp_path):
    return StepLog(tmp_path / "metrics.jsonl")


def row(step):
    return {"step": step, "loss": step / 7}


def test_rows_come_back(log):
    assert log.rows() == []
    log.append([row(1), row(2)])
    log.append([])
    log.append([row(3)])
    assert log.rows() == [row(1), row(2), row(3)]
    assert len(log.path.read_text().splitlines()) == 3


def test_what_is_not_finite_is_null(log):
    log.append(
        [{"step": 1, "loss": math.nan, "limits": {"loss": math.inf, "norms": (1.5, -math.inf)}}]
    )
    found = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert found == {"step": 1, "loss": None, "limits": {"loss": None, "norms": [1.5, None]}}


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(log):
    log.append([row(step) for step in range(1, 8)])
    assert log.cut_behind(4) == [row(1), row(2), row(3), row(4)]
    log.append([row(5)])
    assert log.rows() == [row(step) for step in range(1, 6)]
    assert [entry.name for entry in log.path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_has_nothing_to_cut(log):
    assert log.cut_behind(0) == []
    assert not log.path.exists()


def test_a_run_that_starts_anew_drops_everything(log):
    log.append([row(1)])
    assert log.cut_behind(0) == []
    assert log.rows() == []


@given(st.integers(0, 60), st.integers(0, 4))
def test_a_row_that_a_kill_has_cut_is_left_out(tmp_path_factory, cut, step):
    log = StepLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    whole = "".join(json.dumps(row(step)) + "\n" for step in (1, 2, 3))
    log.path.write_text(whole[: len(whole) - min(cut, len(whole))])
    complete = [r for r in log.rows() if r in [row(1), row(2), row(3)]]
    assert log.rows() == complete == [row(1), row(2), row(3)][: len(complete)]
    kept = log.cut_behind(step)
    log.append([row(9)])
    assert log.rows() == [*kept, row(9)]


def test_a_full_disk_does_not_stop_a_resumed_run(log, full_disk):
    log.append([row(step) for step in range(1, 8)])
    with full_disk(0):
        assert log.cut_behind(3) == [row(1), row(2), row(3)]
        assert log.rows() == [row(1), row(2), row(3)]
        log.append([row(4)])
    log.append([row(5)])
    assert log.rows() == [row(step) for step in range(1, 6)]


def test_the_end_of_a_run_is_the_last_try(log, full_disk, capsys):
    with full_disk(0):
        log.append([row(1)])
    log.close()
    assert log.rows() == [row(1)]
    assert f"{log.path} is written again" in capsys.readouterr().out
