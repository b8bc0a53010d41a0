"""Checkpoints are complete or absent, written at once or in the background; one rank."""

import json
import re
import resource
import subprocess
import sys
import threading

import pytest
import torch

from training import saving
from training.checkpoint import find_faults, find_last_good, list_checkpoints
from training.host_memory import HostMemory
from training.saving import Saving, save_checkpoint


def take_weights(folder):
    return {folder / "deepspeed/weights.pt": b"w" * 1000}


@pytest.fixture
def save(tmp_path, state_of):
    """Write a checkpoint of a step."""
    return lambda step, take=take_weights: save_checkpoint(tmp_path, state_of(step), take, "a: 1\n")


@pytest.fixture
def save_tensor(tmp_path, state_of):
    """Begin to write one that holds a tensor, in the background."""

    def begin(step, tensor, memory):
        def take(folder):
            return {folder / "tensor.pt": {"tensor": tensor}}

        return Saving(tmp_path, state_of(step), take, "a: 1\n", memory=memory)

    return begin


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


def warnings_of(folder):
    warnings = []
    return find_last_good(folder, warnings.append), warnings


def test_latest_moves_only_behind_a_complete_checkpoint(tmp_path, save):
    save(1)

    def watch(folder):
        assert (tmp_path / "latest").read_text() == "step-00000001\n"
        assert steps(tmp_path) == [1]
        return take_weights(folder)

    save(2, watch)
    assert (tmp_path / "latest").read_text() == "step-00000002\n"


def test_one_that_dies_leaves_nothing_that_counts(tmp_path, save):
    save(1)

    def die(folder):
        (folder / "weights").write_text("w")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(2, die)
    assert (tmp_path / ".tmp-step-00000002").is_dir()
    assert steps(tmp_path) == [1]
    assert warnings_of(tmp_path) == (tmp_path / "step-00000001", [])
    save(3)
    assert not list(tmp_path.glob(".tmp*"))
    assert steps(tmp_path) == [1, 3]


def test_what_deepspeed_writes_past_us_is_in_the_summary(save):
    def take(folder):
        (folder / "deepspeed").mkdir()
        (folder / "deepspeed/offloaded").write_text("tensors")
        return take_weights(folder)

    path = save(1, take)
    names = set(json.loads((path / "checkpoint.json").read_text())["files"])
    assert names >= {"deepspeed/offloaded", "deepspeed/weights.pt"}


@pytest.mark.parametrize("where", ["engine", "random state", "summary"])
def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch, save, where):
    good = save(1)

    def full(*_):
        raise OSError(28, "No space left on device")

    take = take_weights
    if where == "engine":
        take = full
    elif where == "random state":
        monkeypatch.setattr(saving.torch, "save", full)
    else:
        monkeypatch.setattr(saving, "write_durably", full)
    with pytest.raises(OSError) as caught:
        save(2, take)
    message = str(caught.value)
    assert message.startswith("checkpoint of step 2 not written to ")
    assert "No space left on device" in message
    assert re.search(
        r"[\d,]+ MiB were free there; the checkpoints before it are untouched", message
    )
    assert not list(tmp_path.glob(".tmp*"))
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    monkeypatch.undo()
    assert warnings_of(tmp_path) == (good, [])
    save(3)
    assert steps(tmp_path) == [1, 3]


def test_too_little_space_is_told_before_the_first_byte(tmp_path, monkeypatch, save):
    whole = torch.zeros(3, 2**18)  # 3 MiB
    views = [whole[0], whole[1], whole]  # of the same memory, written once
    written = []
    monkeypatch.setattr(saving, "write_files", lambda *_: written.append(1))
    monkeypatch.setattr(saving, "_free_bytes", lambda _: 2**22)

    def take(folder):
        return {folder / "weights.pt": {"weights": views, "step": torch.zeros(2**18 + 1)}}

    with pytest.raises(OSError, match="it needs 4 MiB: no space left on device"):
        save(2, take)
    assert not written
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(saving, "_free_bytes", lambda _: 2**22 + 2**14)
    assert save(2, take).name == "step-00000002"


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from training.checkpoint import RunState
from training.saving import save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
numbers = dict(samples_seen=0, skipped_steps=0, world_size=1, zero_stage=1, data_order="f")

def take(folder):
    return {folder / "weights.pt": torch.zeros(1_000_000)}

save_checkpoint(folder, RunState(step=1, **numbers), take, "")
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
try:
    save_checkpoint(folder, RunState(step=2, **numbers), take, "")
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_kernel_refuses_to_write_on(tmp_path, environment):
    """torch.save raises a RuntimeError of its own there."""
    assert resource.RLIMIT_FSIZE is not None
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.startswith("checkpoint of step 2 not written to ")
    assert "the checkpoints before it are untouched" in process.stdout
    assert warnings_of(tmp_path) == (tmp_path / "step-00000001", [])


@pytest.fixture
def slow_disk(monkeypatch):
    """Nothing is written until the event is set."""
    ready = threading.Event()
    write = saving.write_files

    def waiting(*arguments):
        assert ready.wait(10)
        return write(*arguments)

    monkeypatch.setattr(saving, "write_files", waiting)
    return ready


def test_the_background_writes_the_state_of_the_moment(tmp_path, save, save_tensor, slow_disk):
    slow_disk.set()
    good = save(1)
    slow_disk.clear()
    tensor, memory = torch.arange(5.0), HostMemory()
    pending = save_tensor(2, tensor, memory)
    tensor += 1  # training goes on
    assert not pending.is_written()
    # A kill here leaves the one before, and a temporary folder that the next one removes.
    assert warnings_of(tmp_path) == (good, [])
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
    slow_disk.set()
    path = pending.finish()
    assert pending.is_written()
    assert path == tmp_path / "step-00000002"
    assert find_faults(path) == []
    assert (tmp_path / "latest").read_text() == "step-00000002\n"
    assert torch.load(path / "tensor.pt")["tensor"].tolist() == [0, 1, 2, 3, 4]


def test_a_full_disk_in_the_background_is_told_at_the_end(tmp_path, monkeypatch, save, save_tensor):
    good = save(1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.torch, "save", full)
    pending = save_tensor(2, torch.zeros(5), HostMemory())
    with pytest.raises(OSError, match="checkpoint of step 2 not written .*No space left"):
        pending.finish()
    assert warnings_of(tmp_path) == (good, [])
    assert not list(tmp_path.glob(".tmp*"))


def test_an_abandoned_one_never_counts(tmp_path, save, save_tensor):
    good = save(1)
    save_tensor(2, torch.zeros(5), HostMemory()).abandon()
    assert warnings_of(tmp_path) == (good, [])
    save(3)
    assert steps(tmp_path) == [1, 3]
    assert not list(tmp_path.glob(".tmp*"))
