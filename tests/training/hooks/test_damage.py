"""Damage: told when it grows, over all ranks, and taken up where a run continues."""

import json

import pytest
import torch

from training import distributed
from training.data.replacement import Damage
from training.events import EventFile
from training.hooks.damage import DamageHook


@pytest.fixture
def build(tmp_path):
    def hook_of(damage, events=None, validation=()):
        device = torch.device("cpu")
        splits = {"train": [damage], "validation": validation}
        return DamageHook(tmp_path, splits, events, every_steps=2, device=device)

    return hook_of


def rows(folder):
    path = folder / "damage.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def row_of(step, replaced, faults, *, split="train"):
    return {"step": step, "split": split, "replaced_samples": replaced, "faults": faults}


def test_nothing_is_told_of_good_data(build, info_of, tmp_path, capsys):
    hook = build(Damage(), EventFile(tmp_path, first_step=1))
    hook.on_step(info_of(2))
    hook.on_end()
    assert capsys.readouterr().out == ""
    assert rows(tmp_path) == []


def test_told_when_it_grows(build, info_of, scalars, tmp_path, capsys):
    damage = Damage()
    hook = build(damage, EventFile(tmp_path, first_step=1))
    damage.num_replaced = 1200
    damage.note("image a", "no image", warning="image a: no image")
    for step in (2, 4):
        hook.on_step(info_of(step))
    damage.num_replaced += 3
    damage.note("chunk 7", "corrupt", warning="chunk 7: corrupt")
    hook.on_step(info_of(6))
    assert rows(tmp_path) == [
        row_of(2, 1200, {"image a": "no image"}),
        row_of(6, 1203, {"chunk 7": "corrupt"}),
    ]
    assert scalars(tmp_path) == {
        "data/replaced_samples": [(2, 1200), (6, 1203)],
        "data/damaged": [(2, 1), (6, 2)],
    }
    assert capsys.readouterr().out.splitlines() == [
        f"warning: step {step}: {replaced} samples so far came in the place of {number} damaged "
        f"images or chunks, which {tmp_path}/damage.jsonl names"
        for step, replaced, number in ((2, "1,200", 1), (6, "1,203", 2))
    ]


def test_a_run_that_continues_goes_on_counting(build, info_of, state_of, tmp_path):
    for number, step in ((2, 2), (5, 4)):
        hook = build(Damage(num_replaced=number, faults={"image a": "bad", f"image {step}": "bad"}))
        hook.on_step(info_of(step))
    again = build(Damage(num_replaced=1, faults={"image a": "bad"}))
    again.on_start(state_of(3))
    again.on_step(info_of(6))
    assert rows(tmp_path) == [
        row_of(2, 2, {"image a": "bad", "image 2": "bad"}),
        row_of(6, 3, {}),
    ]


def test_ranks_add_up(build, info_of, monkeypatch, tmp_path):
    others = Damage(num_replaced=4, faults={"image a": "bad", "image b": "bad"})
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda own: own + others.num_replaced)
    monkeypatch.setattr(
        distributed, "gather", lambda own: [own, {"train": others, "validation": Damage()}]
    )
    build(Damage(num_replaced=1, faults={"image a": "bad"})).on_step(info_of(2))
    assert rows(tmp_path) == [row_of(2, 5, {"image a": "bad", "image b": "bad"})]


def test_images_of_validation_count_once(build, info_of, state_of, scalars, tmp_path, capsys):
    """By evaluation, by the probe, at each evaluation, and in a process that goes on."""
    faults = {"image v": "bad"}
    evaluated, probed = Damage(faults=faults), Damage(faults=faults)
    parts = (evaluated, probed)
    hook = build(Damage(), EventFile(tmp_path, first_step=1), validation=parts)
    evaluated.replaced.add(7)
    for step in (2, 4):
        hook.on_step(info_of(step))
    probed.replaced.add(7)
    hook.on_step(info_of(6))
    again = build(Damage(), validation=parts)
    again.on_start(state_of(6))
    again.on_step(info_of(8))
    probed.replaced.add(9)
    again.on_step(info_of(10))
    assert rows(tmp_path) == [
        row_of(2, 1, faults, split="validation"),
        row_of(10, 2, {}, split="validation"),
    ]
    assert scalars(tmp_path) == {
        "data_validation/replaced_samples": [(2, 1)],
        "data_validation/damaged": [(2, 1)],
    }
    assert capsys.readouterr().out.splitlines()[0] == (
        "warning: step 2: 1 samples of validation so far came in the place of 1 damaged images or "
        f"chunks, which {tmp_path}/damage.jsonl names"
    )


def test_rows_of_an_early_run_are_of_training(build, info_of, state_of, tmp_path):
    row = {"step": 2, "replaced_samples": 3, "faults": {"image a": "bad"}}
    (tmp_path / "damage.jsonl").write_text(json.dumps(row) + "\n")
    hook = build(Damage(num_replaced=1, faults={"image a": "bad"}))
    hook.on_start(state_of(2))
    hook.on_step(info_of(4))
    assert rows(tmp_path) == [row, row_of(4, 4, {})]
