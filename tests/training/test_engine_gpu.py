"""Options of the engine that only GPUs have take steps like those of the same stage without."""

import os

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def losses(run_ranks, environment, tmp_path_factory):
    """A rank for each device of this machine."""
    out = tmp_path_factory.mktemp("gpu") / "losses.pt"
    names = ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES")
    env = {name: text for name, text in environment.items() if name not in names}
    env |= {name: os.environ[name] for name in names if name in os.environ}
    run_ranks("gpu_worker.py", out, world_size=torch.cuda.device_count(), environment=env)
    return torch.load(out)


def test_deepcompile_takes_the_same_steps(losses):
    assert losses["deepcompile"] == pytest.approx(losses["zero3"], abs=0.02)  # bf16, fused


def test_cuda_graphs_take_the_same_steps(losses):
    """Two micro batches a step: gradients of the first must outlive the graph of the second."""
    assert losses["compiled model"] == pytest.approx(losses["zero0"], abs=0.02)  # bf16, fused


@pytest.mark.parametrize("option", ["quantized weights", "quantized gradients"])
def test_quantized_communication_learns_as_well(losses, option):
    """8 bits of a weight, 4 of a gradient; one GPU alone has nobody to send them to."""
    ours, others = losses[option], losses["zero3"]
    assert ours[0] == pytest.approx(others[0], abs=0.05)
    assert others[-1] < others[0] - 0.1
    assert ours[-1] == pytest.approx(others[-1], abs=0.1)
    if torch.cuda.device_count() > 1:
        assert ours != others
