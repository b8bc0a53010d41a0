"""Predicted beside measured memory: once, after the third step or the last before it."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from training.events import EventFile
from training.hooks import memory
from training.hooks.memory import MemoryHook
from training.memory.ledger import Peak

GIB = 2**30
PEAK = Peak(3 * GIB, Counter(), "backward of loss")


@pytest.mark.parametrize(("device", "name"), [("cpu", "resident_gib"), ("cuda", "measured_gib")])
@pytest.mark.parametrize(("num_steps", "told_at"), [(10, 3), (2, 2)])
def test_row_scalars_and_line(
    tmp_path, info_of, scalars, capsys, monkeypatch, device, name, num_steps, told_at
):
    monkeypatch.setattr(memory, "_measured_bytes", lambda device: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * GIB)
    events = EventFile(tmp_path, first_step=1)
    hook = MemoryHook(tmp_path, events, SimpleNamespace(peak=PEAK), device=torch.device(device))
    hook.on_start(info_of(0).state)
    for step in range(1, num_steps + 1):
        hook.on_step(info_of(step, num_steps=num_steps))
    hook.on_end()
    events.close()
    (row,) = [json.loads(line) for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    assert row == {"step": told_at, name: 4.0, "predicted_gib": 3.0}
    assert scalars(tmp_path)["memory/predicted_gib"] == [(told_at, 3.0)]
    assert scalars(tmp_path)[f"memory/{name}"] == [(told_at, 4.0)]
    line = capsys.readouterr().out
    assert "predicted 3.00 GiB in the backward of loss" in line
    assert ("measured 4.00 GiB (-25.0% predicted)" in line) == (device == "cuda")
    assert ("of the whole process is known, 4.00 GiB" in line) == (device == "cpu")


def test_steps_that_were_skipped_do_not_count(tmp_path, info_of, monkeypatch):
    """Those of fp16 on its way to a scale make no states of the optimizer."""
    monkeypatch.setattr(memory, "_measured_bytes", lambda device: 4 * GIB)
    hook = MemoryHook(tmp_path, None, SimpleNamespace(peak=PEAK), device=torch.device("cpu"))
    for step in range(1, 9):
        skipped = step in (1, 2, 4)
        hook.on_step(info_of(step, SimpleNamespace(wants_stop=False, skipped=skipped)))
    assert [row["step"] for row in hook.log.rows()] == [6]
