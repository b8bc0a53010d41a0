"""`engine.compile=model`: model and loss are one graph, without a break, and compute the same."""

from pathlib import Path

import pytest
import torch

import configs
from training.activation_checkpointing import apply_activation_checkpointing
from training.compilation import compile_objective
from training.config import TrainingConfig
from training.memory.trace import build_bare_task, zero_batch
from training.objective import Objective

ROOT = Path(__file__).parent.parent.parent
SIZES = ("model.d_model=32", "model.num_heads=2", "batch.micro_batch_size=2")
SMALL = {
    "tiny_shakespeare": ("model.num_layers=2", "model.dropout=0"),
    "llama_10m": ("model.num_layers=2", "model.num_kv_heads=1", "model.d_ff=64"),
    "vit_small_cifar10": ("model.num_layers=2", "model.stochastic_depth=0"),
    "mae_small_cifar10": ("model.num_layers=2",),
    "t5_tiny_shakespeare": ("model.num_layers=2", "model.dropout=0"),
}


def load(name):
    path = ROOT / f"configs/training/{name}.yaml"
    return configs.load(TrainingConfig, path, (*SIZES, *SMALL[name]))


def loss_and_gradients(config, *, mode, checkpointing="none"):
    torch.manual_seed(0)
    model = config.model.module.Model(config.model.config)
    apply_activation_checkpointing(model.blocks, checkpointing)
    objective = Objective(model, build_bare_task(config))
    compile_objective(objective, mode, backend="aot_eager")
    # Sentinels of a task without a dataset lie above the vocabulary of the model.
    batch = {
        n: v.clamp(max=9) if v.dtype == torch.int64 else v for n, v in zero_batch(config).items()
    }
    loss, _ = objective(batch)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("checkpointing", ["none", "full", "every_n", "selective"])
def test_model_and_loss_are_one_graph(name, checkpointing):
    config = load(name)
    expected = loss_and_gradients(config, mode="none", checkpointing=checkpointing)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss, gradients = loss_and_gradients(config, mode="model", checkpointing=checkpointing)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(loss, expected[0])
    assert gradients.keys() == expected[1].keys()
    for weight, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][weight])
