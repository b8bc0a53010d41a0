"""The masked autoencoder: what the encoder sees, what is refused."""

import dataclasses

import pytest
import torch

from training.models import vit
from training.models.mae import Config, Model

TINY = Config(
    image_size=16,
    patch_size=4,
    d_model=16,
    num_layers=2,
    num_heads=2,
    decoder_d_model=8,
    decoder_num_layers=1,
    decoder_num_heads=2,
)


def model(**changes):
    torch.manual_seed(0)
    return Model(dataclasses.replace(TINY, **changes)).eval()


def pixels(num=2):
    return torch.randn((num, 3, 16, 16), generator=torch.Generator().manual_seed(0))


def test_the_patches_of_least_noise_are_visible():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.0, 0.0, 0.0, 0.0]])
    half = model(mask_ratio=0.5)
    assert half.choose_visible(noise).tolist() == [[1, 3], [0, 1]]


def test_hidden_pixels_change_nothing():
    autoencoder, images = model(), pixels()
    visible = torch.tensor([[0, 5, 10, 15], [3, 2, 1, 0]])
    predicted = autoencoder(images, visible)
    assert predicted.shape == (2, 16, 48)
    changed = images.clone()
    changed[0, :, 0:4, 4:8] += 1  # patch 1
    changed[1, :, 12:16, 12:16] += 1  # patch 15
    assert torch.equal(autoencoder(changed, visible), predicted)
    changed[0, :, 4:8, 4:8] += 1  # patch 5, visible
    assert (autoencoder(changed, visible)[0] - predicted[0]).abs().max() > 1e-4
    assert torch.equal(autoencoder(changed, visible)[1], predicted[1])


def test_the_encoder_computes_on_visible_patches_alone():
    """A quarter of them and the class token; the decoder's blocks on all, in training too."""
    autoencoder, lengths = model().train(), {"encoder": [], "decoder": []}
    for part, seen in lengths.items():
        for block in getattr(autoencoder, part).blocks:
            block.register_forward_hook(
                lambda _, args, __, seen=seen: seen.append(args[0].shape[1])
            )
    noise = torch.rand((2, 16), generator=torch.Generator().manual_seed(0))
    autoencoder(pixels(), autoencoder.choose_visible(noise)).sum().backward()
    assert lengths == {"encoder": [1 + 4] * 2, "decoder": [1 + 16]}


def test_the_order_of_the_visible_patches_is_nothing():
    autoencoder, images = model(), pixels(1)
    one = autoencoder(images, torch.tensor([[0, 5, 10, 15]]))
    other = autoencoder(images, torch.tensor([[15, 0, 10, 5]]))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_without_a_class_token():
    autoencoder = model(class_token=False)
    assert autoencoder.encoder(pixels()).shape == (2, 16, 16)
    assert autoencoder(pixels(), torch.tensor([[0, 1], [2, 3]])).shape == (2, 16, 48)


def test_blocks_are_those_of_encoder_and_decoder():
    autoencoder = model()
    assert [*autoencoder.blocks] == [*autoencoder.encoder.blocks, *autoencoder.decoder.blocks]
    assert len({name for name, _ in autoencoder.named_parameters()}) == len(
        autoencoder.state_dict()
    )


def test_the_decoder_has_the_sizes_of_the_config():
    sizes = {"decoder_d_model": 12, "decoder_num_layers": 3, "decoder_num_heads": 3}
    decoder = model(**sizes, decoder_d_ff=20, norm_epsilon=0.5).decoder
    assert len(decoder.blocks) == 3
    for block in decoder.blocks:
        assert block.attention.groups == (3, 3, 3)
        assert block.attention.query_key_value.weight.shape == (36, 12)
        assert block.feed_forward.up.weight.shape == (20, 12)
        assert block.attention_norm.eps == block.feed_forward_norm.eps == decoder.norm.eps == 0.5
    assert decoder.head.weight.shape == (3 * 4 * 4, 12)


def test_a_vit_has_the_encoder_of_a_masked_autoencoder():
    sizes = {name: getattr(TINY, name) for name in ("image_size", "patch_size", "d_model")}
    config = vit.Config(
        **sizes, num_layers=2, num_heads=2, positions="sincos", pooling="mean", num_classes=5
    )
    classifier, autoencoder = vit.Model(config).eval(), model()
    classifier.encoder.load_state_dict(autoencoder.encoder.state_dict())
    assert torch.equal(classifier.embed(pixels()), autoencoder.embed(pixels()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 hides 16 of 16 patches"),
        ({"mask_ratio": 0.0}, "mask_ratio 0.0 hides 0 of 16 patches"),
        ({"decoder_num_heads": 3}, "decoder_d_model 8 is no multiple of 3 heads"),
        ({"decoder_d_model": 6, "decoder_d_ff": 8}, "decoder_d_model 6 is no multiple of 4"),
        ({"decoder_num_layers": 0}, "decoder_num_layers is 0; it must be at least 1"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
