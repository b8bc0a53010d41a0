"""Activation checkpointing: the same numbers from less memory."""

import pytest
import torch

from training.activation_checkpointing import apply_activation_checkpointing
from training.models.transformer import Config, Model

BATCH, LENGTH, WIDTH, LAYERS = 2, 32, 32, 4


def loss_and_gradients(mode, *, dropout):
    """Loss, gradients, and the bytes that the forward pass saved for the backward."""
    torch.manual_seed(0)
    model = Model(
        Config(
            vocab_size=11,
            d_model=WIDTH,
            num_layers=LAYERS,
            num_heads=2,
            max_positions=LENGTH,
            dropout=dropout,
        )
    )
    apply_activation_checkpointing(model.blocks, mode)
    saved = {}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # so that no address is used twice
        return tensor

    kept = []
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.features(torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 11)
        forward_bytes = sum(saved.values())
    loss = features.square().sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss, gradients, forward_bytes


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_full_gives_the_same_loss_and_gradients_as_none(dropout):
    kept, computed = (loss_and_gradients(mode, dropout=dropout) for mode in ("none", "full"))
    assert torch.equal(kept[0], computed[0])
    assert kept[1].keys() == computed[1].keys()
    for name, gradient in kept[1].items():
        assert torch.equal(gradient, computed[1][name]), name


def test_full_keeps_only_the_inputs_of_the_blocks():
    kept, computed = (loss_and_gradients(mode, dropout=0.0)[2] for mode in ("none", "full"))
    one = BATCH * LENGTH * WIDTH * 4
    # 16 of them and more in each block; without, one for each and a few of embedding and norm.
    assert kept > 16 * LAYERS * one
    assert computed <= (LAYERS + 4) * one


def test_none_leaves_the_blocks_alone():
    model = Model(Config(vocab_size=11, d_model=8, num_layers=2, num_heads=2))
    apply_activation_checkpointing(model.blocks, "none")
    assert all("forward" not in vars(block) for block in model.blocks)
