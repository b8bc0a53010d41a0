"""Anomalies are told with their samples, skipped, stopped at or rolled back, and remembered."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from training.hooks.anomalies import AnomalyHook, Config, Rollback, pass_over
from training.saving import save_checkpoint

USUAL = [1.0, 3.0] * 4
LIMIT = 2 + 3 * math.sqrt(8 / 7)


@dataclass
class Result:
    loss: float
    grad_norm: float
    skipped: bool
    loss_scale: float = 1.0
    wants_stop: bool = False


@pytest.fixture
def build(tmp_path):
    """A hook in the folder of the run; batches of four samples, two of them in one block."""

    def origins(positions):
        return {"train-000000.tar": {f"block-{n // 2}": [f"d{n}"] for n in positions.tolist()}}

    def hook(*, folder=tmp_path, publish=lambda info: None, **settings):
        config = Config(**{"sigmas": 3.0, "window_steps": 8} | settings)
        return AnomalyHook(
            folder,
            config,
            None,
            positions=lambda seen, size: np.arange(seen, seen + size),
            origins=origins,
            global_batch_size=4,
            publish=publish,
        )

    return hook


@pytest.fixture
def take(info_of, state_of):
    """Steps from `first` on, as an engine takes them; whether each was skipped."""

    def steps(hook, losses, *, first=1, norm=1.0, loss_scale=1.0):
        skipped = []
        for step, loss in enumerate(losses, first):
            hook.before_step()
            is_finite = math.isfinite(loss) and math.isfinite(norm)
            skips = not is_finite or not hook.admits(loss, norm)
            skipped.append(skips)
            info = info_of(step, Result(loss, norm, skips, loss_scale), samples_seen=4 * step)
            hook.on_step(info)
        return skipped

    return steps


def rows(folder):
    return [json.loads(line) for line in (folder / "anomalies.jsonl").read_text().splitlines()]


def test_a_spike_is_told_with_the_samples_of_its_batch_and_taken(build, take, tmp_path, capsys):
    hook = build()
    assert take(hook, [*USUAL, 9.0, 2.0]) == [False] * 10
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "warning: step 9: loss 9 is a spike, above 5.207; the step is taken; "
        f"its samples: {tmp_path}/anomalies.jsonl"
    )
    (row,) = rows(tmp_path)
    assert row.pop("loss_limit") == pytest.approx(LIMIT)
    assert row == {
        "step": 9,
        "rolled_back_from": 0,
        "policy": "warn",
        "kinds": ["loss_spike"],
        "loss": 9.0,
        "grad_norm": 1.0,
        "grad_norm_limit": 1.0,
        "samples_seen": 36,
        "samples": {"train-000000.tar": {"block-16": ["d33"], "block-17": ["d35"]}},
    }


def test_a_spike_is_skipped_where_that_is_asked_for(build, take, capsys):
    assert take(build(spike="skip"), [*USUAL, 9.0, 2.0]) == [False] * 8 + [True, False]
    assert "loss 9 is a spike, above 5.207; the step is skipped; its" in capsys.readouterr().out


def test_the_first_skip_in_a_row_is_told_and_all_are_written(build, take, tmp_path, capsys):
    hook, nan = build(max_in_a_row=4), math.nan
    take(hook, [1, nan, nan, 1, 1, nan, nan, nan, 1, nan])
    lines = [line.split(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"warning: step {step}: loss nan is not finite" for step in (2, 6, 10)]
    assert [row["step"] for row in rows(tmp_path)] == [2, 3, 6, 7, 8, 10]
    assert {row["loss"] for row in rows(tmp_path)} == {None}
    assert hook.counts == {"nonfinite": 6}


@pytest.mark.parametrize(("most", "first"), [(3, 6), (1, 2)])
def test_too_many_in_a_row_end_the_run(build, take, most, first):
    nan = math.nan
    last = first + most - 1
    message = rf"steps {first} to {last} were skipped.*\(anomalies.max_in_a_row={most}\)"
    with pytest.raises(ValueError, match=message):
        take(build(max_in_a_row=most), [1, nan, 1, 1, 1, nan, nan, nan])


def test_no_number_of_skips_ends_the_run_where_that_is_asked_for(build, take):
    assert take(build(max_in_a_row=0), [math.nan] * 30) == [True] * 30


def test_fp16_looks_for_its_scale_in_silence(build, take, tmp_path, capsys):
    """And has diverged where it is at its least, or where the loss itself is not finite."""
    take(build(max_in_a_row=2), [1.0] * 5, norm=math.inf, loss_scale=2.0)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "anomalies.jsonl").exists()
    for loss, scale in ((1.0, 1.0), (math.nan, 2.0)):
        with pytest.raises(ValueError, match="steps 1 to 2 were skipped"):
            take(build(max_in_a_row=2), [loss] * 2, norm=math.inf, loss_scale=scale)


@pytest.mark.parametrize(
    ("settings", "bad", "told"),
    [
        ({"spike": "stop"}, 9.0, r"step 9: loss 9 is a spike.*anomalies.spike=stop"),
        ({"nonfinite": "stop"}, math.inf, r"step 9: loss inf is not.*anomalies.nonfinite=stop"),
    ],
)
def test_the_run_stops_before_the_step_is_taken(build, take, tmp_path, settings, bad, told):
    hook = build(**settings)
    with pytest.raises(ValueError, match=told):
        take(hook, [*USUAL, bad])
    assert hook.config.nonfinite == "stop" or not hook.admits(bad, 1.0)
    assert [row["policy"] for row in rows(tmp_path)] == ["stop"]


def checkpoint(folder, state):
    save_checkpoint(folder / "checkpoints", state, lambda _: {}, "a: 1\n")


def test_back_to_the_last_good_checkpoint_and_past_the_batch(
    build, take, state_of, tmp_path, capsys
):
    checkpoint(tmp_path, state_of(5, samples_seen=20))
    with pytest.raises(Rollback):
        take(build(spike="rollback"), [*USUAL, 9.0])
    assert "back to step 5, and on behind the batch" in capsys.readouterr().out
    (row,) = rows(tmp_path)
    assert (row["step"], row["rolled_back_from"], row["samples_seen"]) == (5, 9, 36)
    # Whoever resumes at step 5 does not meet the batches of steps 6 to 9 again.
    assert pass_over(tmp_path, state_of(5, samples_seen=20)).samples_seen == 36
    assert pass_over(tmp_path, state_of(4, samples_seen=16)).samples_seen == 16
    assert pass_over(tmp_path, state_of(8, samples_seen=48)).samples_seen == 48
    assert pass_over(tmp_path / "new", state_of(0)) == state_of(0)


def test_without_space_to_note_it_a_rollback_is_a_skip(
    build, take, state_of, tmp_path, capsys, full_disk
):
    """What is to be passed over would be lost, and the run would meet the same batch again."""
    checkpoint(tmp_path, state_of(5, samples_seen=20))
    hook = build(spike="rollback", nonfinite="skip")
    take(hook, [*USUAL, math.nan])
    with full_disk(20):
        assert take(hook, [9.0], first=10) == [True]
    assert (
        "step 10: the disk has no space to note that the run goes back" in capsys.readouterr().out
    )
    hook.on_end()  # there is space again
    assert [(row["step"], row["rolled_back_from"]) for row in rows(tmp_path)] == [(9, 0), (10, 0)]
    assert pass_over(tmp_path, state_of(5, samples_seen=20)).samples_seen == 20


def test_back_to_the_checkpoint_that_is_in_the_background_still(
    build, take, state_of, tmp_path, capsys
):
    checkpoint(tmp_path, state_of(2, samples_seen=8))
    asked = []

    def publish(info):
        asked.append(info.state.step)
        checkpoint(tmp_path, state_of(8, samples_seen=32))

    with pytest.raises(Rollback):
        take(build(spike="rollback", publish=publish), [*USUAL, 9.0])
    assert asked == [9]
    assert "back to step 8, and on behind the batch" in capsys.readouterr().out


def test_too_many_rollbacks_to_one_checkpoint_end_the_run(build, take, state_of, tmp_path):
    state = state_of(5, samples_seen=20)
    checkpoint(tmp_path, state)
    for _ in range(2):
        hook = build(nonfinite="rollback", max_in_a_row=2)
        hook.on_start(state)
        with pytest.raises(Rollback):
            take(hook, [1.0, math.nan], first=6)
    assert hook.counts == {"nonfinite": 2}
    with pytest.raises(ValueError, match=r"back to step 5.*, 2 times already"):
        take(hook, [math.nan], first=6)


def test_without_a_checkpoint_a_rollback_is_a_skip(build, take, tmp_path, capsys):
    assert take(build(nonfinite="rollback"), [1.0, math.nan, 1.0]) == [False, True, False]
    assert "there is no checkpoint to go back to" in capsys.readouterr().out
    assert rows(tmp_path)[0]["rolled_back_from"] == 0


def test_so_many_rollbacks_without_a_checkpoint_end_the_run(build, take, capsys):
    hook = build(nonfinite="rollback", max_in_a_row=3)
    take(hook, [1.0, math.nan, 1.0, math.nan, math.nan])
    with pytest.raises(ValueError, match=r"steps 4 to 6 were skipped.*max_in_a_row=3"):
        take(hook, [math.nan], first=6)
    assert capsys.readouterr().out.count("there is no checkpoint to go back to") == 2


@pytest.mark.parametrize(
    ("odd", "counts"), [((9.0, 7.0), {"loss_spike": 2}), ((math.nan, math.inf), {"nonfinite": 2})]
)
def test_a_resumed_run_judges_as_the_unbroken_one(build, take, state_of, tmp_path, odd, counts):
    """From the rows of metrics and of anomalies, of which some are behind the checkpoint; steps
    that are not finite take no place among those that are looked at.
    """
    losses = [*USUAL, odd[0], 2.0, odd[1], 2.5, 1.0]
    whole = build()
    take(whole, losses)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses[:11], 1):
            file.write(json.dumps({"step": step, "loss": loss, "grad_norm": 1.0}) + "\n")
    resumed = build()
    resumed.on_start(state_of(11))
    assert resumed.counts == counts
    assert len(rows(tmp_path)) == 2
    take(resumed, losses[11:], first=12)
    assert resumed.judge.losses == whole.judge.losses
    assert resumed.judge.grad_norms == whole.judge.grad_norms


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("sigmas", -1.0, "sigmas must be 0 or more and finite, found -1"),
        ("sigmas", math.inf, "sigmas must be 0 or more and finite, found inf"),
        ("window_steps", 1, "window_steps must be at least 2, found 1"),
        ("max_in_a_row", -1, "max_in_a_row must be 0 or more, found -1"),
    ],
)
def test_what_has_no_meaning(name, value, told):
    with pytest.raises(ValueError, match=told):
        Config(**{name: value})
