"""AdamW's parameter groups and its learning rate of 0."""

import re

import pytest
import torch
from torch import nn

from training.models import vit
from training.models.transformer import Config as ModelConfig
from training.models.transformer import Model
from training.optimizer import Config, build_optimizer, learning_rate_scales, parameter_groups


def model(**changes) -> Model:
    shape = {"vocab_size": 11, "d_model": 8, "num_layers": 1, "num_heads": 2, "max_positions": 4}
    return Model(ModelConfig(**{**shape, **changes}))


def names(network: nn.Module, groups) -> list[tuple[float, list[str]]]:
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    return [(g["weight_decay"], [by_id[id(p)] for p in g["params"]]) for g in groups]


BLOCK = [
    "blocks.0.attention.query_key_value.weight",
    "blocks.0.attention.output.weight",
    "blocks.0.feed_forward.up.weight",
    "blocks.0.feed_forward.down.weight",
]
BLOCK_NORMS_AND_BIASES = [
    "blocks.0.attention_norm.weight",
    "blocks.0.attention_norm.bias",
    "blocks.0.attention.query_key_value.bias",
    "blocks.0.attention.output.bias",
    "blocks.0.feed_forward_norm.weight",
    "blocks.0.feed_forward_norm.bias",
    "blocks.0.feed_forward.up.bias",
    "blocks.0.feed_forward.down.bias",
    "norm.weight",
    "norm.bias",
]
EMBEDDINGS = ["embedding.weight", "positions.table.weight"]


@pytest.mark.parametrize(
    ("tied", "decay_embeddings", "decayed", "kept"),
    [
        (True, True, [*EMBEDDINGS, *BLOCK], BLOCK_NORMS_AND_BIASES),
        (True, False, BLOCK, [*EMBEDDINGS, *BLOCK_NORMS_AND_BIASES]),
        (False, True, [*EMBEDDINGS, *BLOCK, "head.weight"], BLOCK_NORMS_AND_BIASES),
        (False, False, [*BLOCK, "head.weight"], [*EMBEDDINGS, *BLOCK_NORMS_AND_BIASES]),
    ],
)
def test_groups(tied, decay_embeddings, decayed, kept):
    network = model(tie_embeddings=tied)
    groups = parameter_groups(network, weight_decay=0.3, decay_embeddings=decay_embeddings)
    assert names(network, groups) == [(0.3, decayed), (0.0, kept)]


def mae_layer(name: str, num_blocks: int) -> int:
    """`get_layer_id_for_vit` of the masked autoencoder's `util/lr_decay.py`, in our names."""
    if name.startswith(("embedding", "positions", "encoder.patches", "encoder.positions")):
        return 0
    if name.startswith("encoder.class_token"):
        return 0
    found = re.match(r"(?:encoder\.)?blocks\.(\d+)\.", name)
    return int(found[1]) + 1 if found else num_blocks + 1


@pytest.mark.parametrize("layer_decay", [1.0, 0.75, 0.5])
@pytest.mark.parametrize("kind", ["transformer", "tied transformer", "vit"])
def test_rates_fall_from_layer_to_layer_as_for_the_masked_autoencoder(kind, layer_decay):
    network: nn.Module = model(num_layers=3, tie_embeddings=kind.startswith("tied"))
    if kind == "vit":
        sizes = {"image_size": 8, "patch_size": 4, "d_model": 8, "num_layers": 3, "num_heads": 2}
        network = vit.Model(vit.Config(num_classes=3, **sizes))
    expected = {
        name: layer_decay ** (4 - mae_layer(name, 3)) for name, _ in network.named_parameters()
    }
    assert len(set(expected.values())) == (1 if layer_decay == 1 else 5)
    assert learning_rate_scales(network, layer_decay) == expected
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=layer_decay)
    by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    grouped = {by_id[id(one)]: group["lr_scale"] for group in groups for one in group["params"]}
    assert grouped == expected
    plain = {
        id(one): g["weight_decay"]
        for g in parameter_groups(network, weight_decay=0.1)
        for one in g["params"]
    }
    assert plain == {id(one): g["weight_decay"] for g in groups for one in g["params"]}


def test_frozen_parameters_are_left_out_and_no_group_is_empty():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2, bias=False))
    network[1].weight.requires_grad_(False)
    groups = parameter_groups(network, weight_decay=0.1)
    assert names(network, groups) == [(0.1, ["0.weight"])]


def test_a_partitioned_matrix_that_looks_flat_still_decays():
    network = nn.Linear(3, 2)
    network.weight.ds_shape, network.bias.ds_shape = torch.Size([2, 3]), torch.Size([2])
    network.weight.data = torch.empty(0)
    groups = parameter_groups(network, weight_decay=0.1)
    assert names(network, groups) == [(0.1, ["weight"]), (0.0, ["bias"])]


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_before_the_rate_is_set_changes_nothing(fused):
    network = model()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = build_optimizer(network, Config(fused=fused))
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]
    network(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_updates_are_those_of_the_formula():
    parameter = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(parameter.weight, 2.0)
    config = Config(betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.5)
    optimizer = build_optimizer(parameter, config)
    weight, mean, square = 2.0, 0.0, 0.0
    for step, (rate, gradient) in enumerate([(0.1, 3.0), (0.05, -1.0)], 1):
        optimizer.param_groups[0]["lr"] = rate
        parameter.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        unbiased = (mean / (1 - 0.8**step), square / (1 - 0.9**step))
        weight = weight * (1 - rate * 0.5) - rate * unbiased[0] / (unbiased[1] ** 0.5 + 1e-3)
        assert parameter.weight.item() == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_learning_rate": 0.0}, "peak_learning_rate is 0.0; it must be above 0"),
        ({"epsilon": -1e-8}, "epsilon is -1e-08"),
        ({"betas": (0.9, 1.0)}, r"betas are \[0.9, 1.0\]"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1; it must be above 0 and at most 1"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)
