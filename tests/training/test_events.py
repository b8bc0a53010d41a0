"""The event file against torch's SummaryWriter, as TensorBoard reads both."""

import math
import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from training.events import EventFile

VALUES = {"train/loss": 2.5, "train/learning_rate": 1e-9, "train/grad_norm": math.inf}


def single(value):
    """Rounded to fp32, as TensorBoard keeps scalars."""
    return struct.unpack("f", struct.pack("f", value))[0]


def test_the_same_scalars_as_a_summary_writer(scalars, tmp_path):
    events = EventFile(tmp_path / "ours", first_step=1)
    (tmp_path / "ours").mkdir()
    with SummaryWriter(str(tmp_path / "theirs"), purge_step=1) as writer:
        for step in (1, 2, 10**9):
            values = {tag: value * step for tag, value in VALUES.items()}
            events.add_scalars(values, step)
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
    events.close()
    ours = scalars(tmp_path / "ours")
    assert ours == scalars(tmp_path / "theirs")
    assert ours["train/loss"] == [(step, single(2.5 * step)) for step in (1, 2, 10**9)]
    assert ours.keys() == VALUES.keys()


def test_the_same_text_as_a_summary_writer(tmp_path):
    events = EventFile(tmp_path, first_step=1)
    events.add_text("sample", "```\nto be\n```", 7)
    events.close()
    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        writer.add_text("sample", "```\nto be\n```", 7)
    found = []
    for folder in (tmp_path, tmp_path / "theirs"):
        accumulator = EventAccumulator(str(folder)).Reload()
        (tag,) = accumulator.Tags()["tensors"]
        metadata = accumulator.SummaryMetadata(tag)
        (event,) = accumulator.Tensors(tag)
        found.append((tag, metadata, event.step, event.tensor_proto))
    assert found[0] == found[1]


def test_a_resumed_run_hides_the_steps_behind_its_checkpoint(scalars, tmp_path):
    killed = EventFile(tmp_path, first_step=1)
    for step in range(1, 6):
        killed.add_scalars({"loss": float(step)}, step)
    killed.flush()
    resumed = EventFile(tmp_path, first_step=4)
    resumed.add_scalars({"loss": 40.0}, 4)
    resumed.close()
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_a_full_disk_costs_no_event(full_disk, scalars, tmp_path, capsys):
    events = EventFile(tmp_path, first_step=1)
    for step in range(1, 6):
        events.add_scalars({"loss": float(step)}, step)
        with full_disk(130):  # the head and the first step
            events.flush()
        assert scalars(tmp_path) == {"loss": [(1, 1.0)]}
    events.close()
    assert scalars(tmp_path) == {"loss": [(step, float(step)) for step in range(1, 6)]}
    assert capsys.readouterr().out.count("warning: ") == 1


@pytest.mark.parametrize("step", [0, 2**40])
def test_any_step(scalars, tmp_path, step):
    events = EventFile(tmp_path, first_step=step)
    events.add_scalars({"loss": 1.0}, step)
    events.close()
    assert scalars(tmp_path) == {"loss": [(step, 1.0)]}
