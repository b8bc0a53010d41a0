"""The evaluation hook with an engine that returns what it is told."""

import contextlib
import io

import numpy as np
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import distributed
from training.data.replacement import Damage
from training.events import EventFile
from training.hooks.evaluation import Config, EvaluationHook
from training.objective import Summary

SQUARE = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(2, 3, 3)


class FakeEngine:
    def __init__(self, losses):
        self.losses = iter(losses)
        self.seen = []
        self.is_averaged = False

    @contextlib.contextmanager
    def averaged(self):
        self.is_averaged = True
        yield
        self.is_averaged = False

    def evaluate(self, batches):
        self.seen.append((batches, self.is_averaged))
        means = {"loss": torch.tensor(next(self.losses)), "hits": torch.tensor([0.25, 0.25])}
        return 1234, means


class FakeBatches(list):
    def __init__(self):
        super().__init__(["batch"])
        self.damage = Damage()


def summarise(means):
    loss = means["loss"].item()
    scalars = {"loss": loss, "accuracy": means["hits"].sum().item()}
    return Summary(f"loss {loss:.2f}, all well", scalars, {"square": SQUARE})


def row_of(step, loss):
    return {"step": step, "loss": loss, "accuracy": 0.5, "num_targets": 1234, "replaced": 0}


@pytest.fixture
def build(tmp_path, state_of):
    def hook_at(losses, *, step=0, events=None, averaged=False):
        engine = FakeEngine(losses)
        hook = EvaluationHook(
            engine,
            FakeBatches(),
            events,
            summarise=summarise,
            every_steps=2,
            run_dir=tmp_path,
            averaged=averaged,
        )
        hook.on_start(state_of(step))
        return hook

    return hook_at


def test_rows_and_lines(build, info_of, tmp_path, capsys):
    hook = build([2.0, 1.5, 1.75])
    assert hook.every_n_steps == 2
    for step in (2, 4, 6):
        hook.on_step(info_of(step))
    assert hook.log.rows() == [row_of(2, 2.0), row_of(4, 1.5), row_of(6, 1.75)]
    assert hook.engine.seen == [(["batch"], False)] * 3
    assert hook.log.path.name == "evaluation.jsonl"
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("validation at step 6: loss 1.75, all well over 1,234 targets in ")
    assert [line.split("; ")[1] for line in lines] == [
        "best loss so far 2.0000",
        "best loss so far 1.5000",
        "best loss so far 1.5000",
    ]


def test_averaged_weights_have_a_log_and_tags_of_their_own(
    build, info_of, scalars, tmp_path, capsys
):
    hook = build([2.0], events=EventFile(tmp_path, first_step=1), averaged=True)
    hook.on_step(info_of(2))
    assert hook.engine.seen == [(["batch"], True)]
    assert hook.engine.is_averaged is False
    assert hook.log.path.name == "evaluation_ema.jsonl"
    assert hook.log.rows() == [row_of(2, 2.0)]
    assert scalars(tmp_path) == {
        "validation_ema/loss": [(2, 2.0)],
        "validation_ema/accuracy": [(2, 0.5)],
    }
    assert capsys.readouterr().out.startswith("validation of averaged weights at step 2: loss 2.00")


def test_tensorboard(build, info_of, scalars, tmp_path):
    hook = build([2.0, 1.5], events=EventFile(tmp_path, first_step=1))
    for step in (2, 4):
        hook.on_step(info_of(step))
    assert scalars(tmp_path) == {
        "validation/loss": [(2, 2.0), (4, 1.5)],
        "validation/accuracy": [(2, 0.5), (4, 0.5)],
    }
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = events.Images("validation/square")
    assert [event.step for event in shown] == [2, 4]
    for event in shown:
        picture = PIL.Image.open(io.BytesIO(event.encoded_image_string))
        assert np.array_equal(np.asarray(picture), SQUARE.numpy())


def test_replaced_samples_are_counted_over_ranks(build, info_of, monkeypatch):
    """Each once, also where both ranks have it."""
    monkeypatch.setattr(distributed, "gather", lambda own: [own, {3, 4}])
    hook = build([2.0, 1.5])
    hook.batches.damage.replaced |= {2, 3}
    for step in (2, 4):
        hook.on_step(info_of(step))
    assert [row["replaced"] for row in hook.log.rows()] == [3, 3]


def test_a_resumed_run_knows_the_best_before_its_checkpoint(build, info_of, tmp_path, capsys):
    hook = build([1.0, 3.0, 0.5])
    for step in (2, 4, 6):
        hook.on_step(info_of(step))
    resumed = build([2.0], step=4)
    resumed.on_step(info_of(6))
    assert resumed.log.rows() == [row_of(2, 1.0), row_of(4, 3.0), row_of(6, 2.0)]
    assert capsys.readouterr().out.endswith("best loss so far 1.0000\n")


def test_a_full_disk_costs_no_row(build, info_of, tmp_path, full_disk, capsys):
    hook = build([2.0, 1.5])
    with full_disk(20):
        hook.on_step(info_of(2))
        hook.on_step(info_of(4))
    assert hook.log.rows() == []
    hook.on_end()
    assert hook.log.rows() == [row_of(2, 2.0), row_of(4, 1.5)]
    assert capsys.readouterr().out.count("warning: ") == 1


def test_other_ranks_evaluate_and_write_nothing(build, info_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    hook = build([1.0])
    hook.on_step(info_of(2))
    assert hook.engine.seen == [(["batch"], False)]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["every_steps", "max_samples", "micro_batch_size"])
def test_negative_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, found -1"):
        Config(**{name: -1})
