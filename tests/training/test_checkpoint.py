"""Checkpoints: verified, passed over when damaged, removed when old; one rank, no DeepSpeed."""

import hashlib
import json
import re

import pytest

from training.checkpoint import (
    Config,
    RunState,
    find_last_good,
    list_checkpoints,
    read_state,
    remove_old,
)
from training.saving import save_checkpoint

FILES = ["checkpoint.json", "config.yaml", "deepspeed/weights.pt", "rank-00000.pt", "state.json"]


def state_of(step):
    return RunState(
        step=step,
        samples_seen=12 * step,
        skipped_steps=1,
        world_size=2,
        zero_stage=3,
        data_order="f00d",
    )


def take_weights(folder):
    return {folder / "deepspeed/weights.pt": b"w" * 1000}


def save(folder, step, take=take_weights):
    return save_checkpoint(folder, state_of(step), take, f"num_steps: {step}\n")


def steps(folder):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


@pytest.fixture
def warnings():
    return []


def test_what_a_checkpoint_holds(tmp_path, warnings):
    path = save(tmp_path, 7)
    assert path == tmp_path / "step-00000007"
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert files == FILES
    assert read_state(path) == state_of(7)
    assert (path / "config.yaml").read_text() == "num_steps: 7\n"
    summary = json.loads((path / "checkpoint.json").read_text())["files"]
    assert summary == {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in FILES[1:]
    }
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    assert find_last_good(tmp_path, warnings.append) == path
    assert warnings == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "step-00000007"]


def test_checkpoints_are_sorted_by_step(tmp_path):
    for step in (100_000_000, 99_999_999, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-latest").mkdir()
    (tmp_path / "step-00000006.bak").mkdir()
    assert steps(tmp_path) == [5, 99_999_999, 100_000_000]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3]), (1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_the_newest_are_kept(tmp_path, keep, left):
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    remove_old(paths[-1], keep=keep)
    assert steps(tmp_path) == left


def test_every_nth_is_kept_for_ever(tmp_path):
    for step in range(10, 80, 10):
        remove_old(save(tmp_path, step), keep=2, keep_every_steps=30)
    assert steps(tmp_path) == [30, 60, 70]
    remove_old(save(tmp_path, 85), keep=1, keep_every_steps=30)
    assert steps(tmp_path) == [30, 60, 85]


def test_damaged_ones_ahead_do_not_count_as_kept(tmp_path, warnings):
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        (tmp_path / f"step-000000{step}/state.json").unlink()
    assert find_last_good(tmp_path, warnings.append) == tmp_path / "step-00000010"
    newest = save(tmp_path, 20)  # the run went on from step 10
    remove_old(newest, keep=1)
    assert steps(tmp_path) == [20, 30]
    assert find_last_good(tmp_path, warnings.append) == newest


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (cut, r"{name} has \d+ of \d+ bytes"),
        (flip, r"{name} has another sha256"),
        (remove, "{name} is missing"),
    ],
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path, warnings, name, damage, fault
):
    good, newest = save(tmp_path, 1), save(tmp_path, 2)
    if name == "checkpoint.json":
        fault = "" if damage is flip else "checkpoint.json: "  # a flip may name another file
        if damage is cut:  # the last byte is a line end, which says nothing
            cut(newest / name)
    damage(newest / name)
    assert find_last_good(tmp_path, warnings.append) == good
    (warning,) = warnings
    assert warning.startswith(f"{newest}: damaged, passed over: ")
    assert re.search(fault.format(name=re.escape(name)), warning)


def test_every_flipped_byte_of_the_summary_is_noticed(tmp_path, warnings):
    path = save(tmp_path, 1) / "checkpoint.json"
    content = path.read_bytes()
    meaning = json.loads(content)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        path.write_bytes(bytes(flipped))
        found = find_last_good(tmp_path, warnings.append)
        try:
            same = json.loads(flipped) == meaning
        except ValueError:
            same = False
        # An index "files" with another name or a file of another name is found missing.
        assert (found is not None) == same, (position, bytes(flipped))


def test_all_faults_of_a_checkpoint_are_told(tmp_path, warnings):
    path = save(tmp_path, 1)
    (path / "config.yaml").unlink()
    cut(path / "deepspeed/weights.pt")
    assert find_last_good(tmp_path, warnings.append) is None
    assert warnings == [
        f"{path}: damaged, passed over: config.yaml is missing; "
        "deepspeed/weights.pt has 999 of 1000 bytes"
    ]


def test_nothing_there(tmp_path, warnings):
    assert find_last_good(tmp_path / "none", warnings.append) is None
    assert warnings == []


@pytest.mark.parametrize("name", ["every_steps", "keep", "keep_every_steps"])
def test_negative_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, found -1"):
        Config(**{name: -1})


@pytest.mark.parametrize("every_steps", [0, 400])
def test_steps_without_a_checkpoint_cannot_be_kept(every_steps):
    message = f"is 1000; it must be a multiple of every_steps, which is {every_steps}, or 0"
    with pytest.raises(ValueError, match=message):
        Config(every_steps=every_steps, keep_every_steps=1000)
    assert Config(every_steps=500, keep_every_steps=1000).keep_every_steps == 1000
