"""Bytes of a step by formula, and what DeepSpeed's comms logger counts on two gloo ranks."""

import importlib.util
from pathlib import Path

import pytest
import torch

from training.communication import Traffic, Ways, step_traffic


@pytest.fixture(scope="module")
def counted(run_ranks, tmp_path_factory):
    out = tmp_path_factory.mktemp("communication") / "counted.pt"
    run_ranks("communication_worker.py", out, world_size=2)
    return torch.load(out)


@pytest.mark.slow
def test_the_formula_is_what_is_counted(counted):
    counted, names = counted
    assert len(counted) == 19
    for (stage, precision, accumulation, mode, secondary), (sums, num_weights) in counted.items():
        width = 4 if precision == "fp32" else 2
        ways = Ways(zero_stage=stage, weight_bytes=width, secondary=secondary)
        traffic = step_traffic(num_weights, ways, world_size=2, accumulation=accumulation)
        case = f"stage {stage} {precision} x {accumulation} {mode}: {sums}"
        for field, name in names.items():
            expected, found = getattr(traffic, field), sums.get(name, 0)
            if field == "all_gather":  # the logger does not tell apart where they go
                expected += traffic.all_gather_in_node
            if field == "all_gather" and stage == 3:  # what stays is not gathered again
                assert 0.88 * expected <= found <= expected, case
            else:
                assert found == pytest.approx(expected, rel=1e-3, abs=64), case


def test_the_table_of_the_docs_is_that_of_the_benchmark():
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("table", root / "benchmarks/communication.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = (root / "docs/communication.md").read_text().splitlines()
    shown = [line.split(" | ", 1)[1].strip(" |") for line in lines if " GB, " in line]
    assert shown == [" | ".join(cells) for cells in module.table_of(7 * 10**9, 1).values()]


def test_rings():
    """A ring of four: an all-reduce sends 2 x 3/4 of a tensor, a gather three times its part."""
    assert Traffic(all_reduce=400).sent(4) == 600
    assert Traffic(all_gather=100).sent(4) == 300
    assert Traffic(reduce_scatter=400).sent(4) == 300
    assert Traffic(all_reduce=400, all_gather=100, reduce_scatter=8).sent(1) == 0
    assert Traffic(all_gather_in_node=100).sent(64) == 0
    assert Traffic(all_gather_in_node=100).sent_in_node(8) == 700


def test_zero_plus_plus_is_a_quarter_of_zero_3():
    """Table 1 of the paper: 3 M of bf16 become 0.5 M + 0 + 0.25 M between nodes."""
    plain = Ways(zero_stage=3, gradient_bytes=2)
    plus = Ways(zero_stage=3, weight_bytes=1, gradient_bytes=0.5, secondary=8)
    sent = [
        step_traffic(10**6, ways, world_size=64, accumulation=1).sent(64) for ways in (plain, plus)
    ]
    assert sent[0] == pytest.approx(3 * 2e6 * 63 / 64)
    assert sent[1] == pytest.approx(sent[0] / 4)
    inside = step_traffic(10**6, plus, world_size=64, accumulation=1).sent_in_node(8)
    assert inside == pytest.approx(1e6 * 7 / 8)
