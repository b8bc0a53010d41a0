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

from training.huggingface.initial import read_weights
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


def pixels(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_their_weights(ours, theirs, folder):
    """Read from the folder that they write."""
    theirs.save_pretrained(folder)
    ours.load_state_dict(read_weights(folder, ours.config).weights)
    return ours.eval()


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
def our_vit(their_vit, tmp_path):
    return with_their_weights(vit.Model(vit.Config(**SIZES, num_classes=7)), their_vit, tmp_path)


@pytest.fixture
def mae_pair(roughen, tmp_path):
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
    return with_their_weights(mae.Model(config), theirs, tmp_path), theirs


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
