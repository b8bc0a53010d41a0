"""The same weights give the same results as Hugging Face transformers' ViT and ViTMAE."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

from training.models import mae, vit

SIZES = {"image_size": 24, "patch_size": 8, "d_model": 32, "num_layers": 2, "num_heads": 4}
THEIR_SIZES = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def linear(state, ours, theirs):
    return {f"{ours}.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias")}


def blocks(state, ours, theirs, num_layers):
    """Blocks under our names; queries, keys and values become one projection."""
    result = {}
    names = {
        "attention_norm": "layernorm_before",
        "attention.output": "attention.o_proj",
        "feed_forward_norm": "layernorm_after",
        "feed_forward.up": "mlp.fc1",
        "feed_forward.down": "mlp.fc2",
    }
    for layer in range(num_layers):
        for own, name in names.items():
            result |= linear(state, f"{ours}.{layer}.{own}", f"{theirs}.{layer}.{name}")
        for part in ("weight", "bias"):
            parts = [state[f"{theirs}.{layer}.attention.{one}_proj.{part}"] for one in "qkv"]
            result[f"{ours}.{layer}.attention.query_key_value.{part}"] = torch.cat(parts)
    return result


def encoder(state, num_layers):
    projection = "vit.embeddings.patch_embeddings.projection"
    return {
        "encoder.patches.projection.weight": state[f"{projection}.weight"].flatten(1),
        "encoder.patches.projection.bias": state[f"{projection}.bias"],
        "encoder.class_token.weight": state["vit.embeddings.cls_token"].flatten(),
        **blocks(state, "encoder.blocks", "vit.layers", num_layers),
        **linear(state, "encoder.norm", "vit.layernorm"),
    }


def from_vit(theirs):
    state = theirs.state_dict()
    table = state["vit.embeddings.position_embeddings"][0]
    return {
        **encoder(state, theirs.config.num_hidden_layers),
        "encoder.positions.table.weight": table,
        **linear(state, "head", "classifier"),
    }


def from_mae(theirs):
    """The decoder's last layer tells pixel by pixel, ours channel by channel."""
    state, config = theirs.state_dict(), theirs.config
    result = {
        **encoder(state, config.num_hidden_layers),
        **linear(state, "decoder.embedding", "decoder.decoder_embed"),
        "decoder.mask_token.weight": state["decoder.mask_token"].flatten(),
        **blocks(
            state, "decoder.blocks", "decoder.decoder_layers", config.decoder_num_hidden_layers
        ),
        **linear(state, "decoder.norm", "decoder.decoder_norm"),
        **linear(state, "decoder.head", "decoder.decoder_pred"),
    }
    for part in ("weight", "bias"):
        rows = result[f"decoder.head.{part}"].unflatten(0, (config.patch_size**2, 3))
        result[f"decoder.head.{part}"] = rows.transpose(0, 1).flatten(0, 1)
    return result


def pixels(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fill_positions(theirs):
    """Their tables are 0 (transformers 5.23) until published weights are loaded."""
    theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights(9)
    for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        assert table.abs().max() == 1


@pytest.fixture
def their_vit(roughen):
    torch.manual_seed(0)
    config = ViTConfig(**THEIR_SIZES, num_labels=7, layer_norm_eps=1e-6)
    theirs = ViTForImageClassification(config).eval()
    roughen(theirs)
    return theirs


@pytest.fixture
def our_vit(their_vit):
    ours = vit.Model(vit.Config(**SIZES, num_classes=7)).eval()
    ours.load_state_dict(from_vit(their_vit))
    return ours


@pytest.fixture
def mae_pair(roughen):
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            **THEIR_SIZES,
            decoder_hidden_size=24,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=3,
            decoder_intermediate_size=96,
            layer_norm_eps=1e-6,
        )
    ).eval()
    fill_positions(theirs)
    roughen(theirs)
    config = mae.Config(
        **SIZES, decoder_d_model=24, decoder_num_layers=2, decoder_num_heads=3, mask_ratio=0.75
    )
    ours = mae.Model(config).eval()
    ours.load_state_dict(from_mae(theirs))
    return ours, theirs


@torch.no_grad()
def test_vit(their_vit, our_vit):
    images = pixels(3, 3, 24, 24)
    expected = their_vit(images).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(our_vit(images), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (16, 40), (8, 8)])
def test_vit_at_another_size(their_vit, our_vit, shape):
    """Learned positions are stretched as theirs are."""
    images = pixels(2, 3, *shape)
    expected = their_vit(images, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(our_vit(images), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mae(mae_pair):
    ours, theirs = mae_pair
    images, noise = pixels(3, 3, 24, 24), torch.rand(3, 9)
    expected = theirs(images, noise=noise).logits.unflatten(2, (64, 3))  # (B, P, p p, C)
    visible = ours.choose_visible(noise)
    actual = ours(images, visible).unflatten(2, (3, 64)).transpose(2, 3)
    assert visible.shape == (3, 2)
    assert expected.std() > 0.3
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_features_of_a_masked_autoencoder(mae_pair):
    """With all patches visible, as its encoder is used afterwards."""
    ours, theirs = mae_pair
    encoder_alone = ViTMAEModel(theirs.config)
    encoder_alone.load_state_dict(
        {name.removeprefix("vit."): value for name, value in theirs.state_dict().items()},
        strict=False,
    )
    encoder_alone.config.mask_ratio = 0.0
    images, noise = pixels(2, 3, 24, 24), torch.arange(9.0).expand(2, 9)
    expected = encoder_alone.eval()(images, noise=noise).last_hidden_state
    torch.testing.assert_close(ours.encoder(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.embed(images), expected[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
