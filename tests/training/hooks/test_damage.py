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
    def hook_of(damage, events=None):
        device = torch.device("cpu")
        return DamageHook(tmp_path, damage, events, every_steps=2, device=device)

    return hook_of


def rows(folder):
    path = folder / "damage.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
        {"step": 2, "replaced_samples": 1200, "faults": {"image a": "no image"}},
        {"step": 6, "replaced_samples": 1203, "faults": {"chunk 7": "corrupt"}},
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
        {"step": 2, "replaced_samples": 2, "faults": {"image a": "bad", "image 2": "bad"}},
        {"step": 6, "replaced_samples": 3, "faults": {}},
    ]


def test_ranks_add_up(build, info_of, monkeypatch, tmp_path):
    others = Damage(num_replaced=4, faults={"image a": "bad", "image b": "bad"})
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda own: own + others.num_replaced)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, others.faults])
    build(Damage(num_replaced=1, faults={"image a": "bad"})).on_step(info_of(2))
    faults = {"image a": "bad", "image b": "bad"}
    assert rows(tmp_path) == [{"step": 2, "replaced_samples": 5, "faults": faults}]
