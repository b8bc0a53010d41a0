"""A checkpoint goes on at other world sizes and ZeRO stages with the same state, bit by bit.

What lies in one is read here by DeepSpeed's own consolidation of weights, which knows nothing of
our layouts.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from training import engine as engines
from training.checkpoint import list_checkpoints, read_state, step_of
from training.ema import load_parts
from training.layout import read_layouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WAYS = ["01", "12", "23", "30", "31", "010", "121", "232", "303", "313"]
FROZEN = "positions.table.weight"
UNSTEPPED = {"model.mean", "model.head.weight", f"model.{FROZEN}"}
"""A buffer, a tied weight, a frozen one: no optimizer knows them by these names."""
MODEL = (
    "{name: transformer, vocab_size: 32, d_model: 16, num_layers: 2, num_heads: 2,"
    " max_positions: 16}"
)
ROUNDING = 1e-5
"""Losses of 3 nats, whose last bit is 2.4e-7, behind eight steps: ranks sum in another order."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, run_ranks, write_config):
    """Two ranks, then one, then two: checkpoints by their way with the next losses, and a run.

    It goes on from step 4 of its first part, and from step 6 of the second.
    """
    folders, losses, runs, logs = {}, {}, [], []
    source = []
    for world_size, stage, every, first in ((2, 2, 4, 0), (1, 3, 2, 4), (2, 1, 2, 6)):
        folder = tmp_path_factory.mktemp(f"on-{world_size}")
        run_dir = folder / "run"
        if runs:
            shutil.copytree(runs[-1], run_dir)
            for path in list_checkpoints(run_dir / "checkpoints"):
                if step_of(path) > first:
                    shutil.rmtree(path)
        config = write_config(
            run_dir=run_dir,
            num_steps=8,
            model=MODEL,
            engine=f"{{zero_stage: {stage}, precision: fp32}}",
            ema="{decay: 0.9}",
            checkpoints=f"{{every_steps: {every}, asynchronous: true}}",
            evaluation="{every_steps: 4}",
        )
        shutil.copy(config, folder / "train.yaml")
        run_ranks("elastic_worker.py", folder, *source, world_size=world_size)
        losses |= torch.load(folder / "results.pt")
        folders |= {path.name: path for path in folder.iterdir() if path.name in {*"0123", *WAYS}}
        runs.append(run_dir)
        logs.append((folder / "rank-0.log").read_text())
        source = [folder]
    assert folders.keys() == losses.keys() == {*"0123", *WAYS}
    return SimpleNamespace(folders=folders, losses=losses, runs=runs, logs=logs)


def contents(folder):
    """All of a checkpoint by what it is: weights, their average, moments, the count of steps."""
    files = sorted((folder / "deepspeed").glob("*optim_states.pt"))
    found = {"weights": engines.load_weights(folder), "frozen": frozen(folder)}
    found["weights"].pop(FROZEN, None)  # DeepSpeed forgets it at stage 1
    if not files:
        return found | contents_of_stage_0(folder)
    saved = [torch.load(path, weights_only=False)["optimizer_state_dict"] for path in files]
    inner = [one.get("base_optimizer_state") or one["optimizer_state_dict"] for one in saved]
    states = [list(one["state"].values()) for one in inner]
    parts = {kind: [[one[kind] for one in rank] for rank in states] for kind in MOMENTS}
    parts["average"] = [list(part.values()) for part in load_parts(folder)]
    for kind, flats in parts.items():
        whole = engines._consolidate(folder, flats)
        found[kind] = {name: whole[name] for name in whole if name not in UNSTEPPED}
    return found | {"steps": {float(one["step"]) for rank in states for one in rank}}


def contents_of_stage_0(folder):
    saved = model_files(folder)[0]
    names = [piece.weight for piece in read_layouts(folder)[0].pieces]
    states = dict(zip(names, saved["optimizer"]["state"].values(), strict=True))
    found = {kind: {f"model.{n}": one[kind] for n, one in states.items()} for kind in MOMENTS}
    (part,) = load_parts(folder)
    found["average"] = {f"model.{name}": mean for name, mean in part.items()}
    return found | {"steps": {float(one["step"]) for one in states.values()}}


def model_files(folder):
    paths = sorted((folder / "deepspeed").glob("*model_states.pt"))
    return [torch.load(path, weights_only=False) for path in paths]


def frozen(folder):
    """In bf16, as the stages above 0 have it."""
    files = model_files(folder)
    parts = [one["frozen_param_fragments"] or one["module"] for one in files]
    whole = torch.cat([part[f"model.{FROZEN}"].flatten() for part in parts])
    return {FROZEN: whole.bfloat16()}


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_and_nothing_changes(chain, way):
    first, last = (contents(chain.folders[one]) for one in (way[0], way))
    assert first.pop("steps") == last.pop("steps") == {3.0}
    assert first.keys() == {"weights", "frozen", "average", *MOMENTS}
    for kind, expected in first.items():
        assert_equal(last[kind], expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_next_losses_are_those_of_the_first(chain, way):
    # Stage 0 computes under autocast, the others on weights in bf16, which has 8 bits.
    margin = 0.02 if "0" in way else 0.002
    assert chain.losses[way] == pytest.approx(chain.losses[way[0]], abs=margin)


def test_the_count_of_the_average_goes_on(chain):
    for way in WAYS:
        path = chain.folders[way] / "ema-00000.pt"
        assert torch.load(path, weights_only=True)["num_updates"] == 3


def rows(run_dir, name):
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("number", "moved"),
    [
        (1, "step 4, 16 samples seen, from 2 ranks at ZeRO stage 2 to 1 rank at ZeRO stage 3"),
        (2, "step 6, 24 samples seen, from 1 rank at ZeRO stage 3 to 2 ranks at ZeRO stage 1"),
    ],
)
def test_a_run_goes_on_elsewhere_with_the_same_losses(chain, number, moved):
    """Its checkpoints are written in the background; a second engine knows nothing of the first."""
    assert moved in chain.logs[number]
    files = {1: "step-00000004: 2 of 2", 2: "step-00000006: 1 of 1"}[number]
    assert f"{files} ranks' files" in chain.logs[number]  # told all 10 s, here always
    whole, ours = chain.runs[0], chain.runs[number]
    for name in ("metrics.jsonl", "evaluation.jsonl", "evaluation_ema.jsonl"):
        expected, found = rows(whole, name), rows(ours, name)
        assert [row["step"] for row in found] == [row["step"] for row in expected]
        losses = [row["loss"] for row in found]
        assert losses == pytest.approx([row["loss"] for row in expected], abs=ROUNDING)
    last = ours / "checkpoints/step-00000008"
    state = read_state(last)
    assert (state.step, state.samples_seen) == (8, 32)
    assert f"{state.world_size} {state.zero_stage}" == {1: "1 3", 2: "2 1"}[number]
    weights, others = (engines.load_weights(f / "checkpoints/step-00000008") for f in (whole, ours))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=1e-4)
