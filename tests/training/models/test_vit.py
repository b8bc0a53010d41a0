"""The Vision Transformer: sizes of the papers, parts of its config, what is refused."""

import dataclasses
import math

import pytest
import torch

from training.layers.image_positions import interpolate_positions
from training.layers.patches import patchify, unpatchify
from training.layers.residual import StochasticDepth
from training.models.vit import Config, Model, num_parameters

TINY = Config(image_size=16, patch_size=4, d_model=16, num_layers=3, num_heads=2, num_classes=5)


def model(**changes):
    torch.manual_seed(0)
    return Model(dataclasses.replace(TINY, **changes))


def pixels(*shape):
    return torch.randn(shape or (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("variant", "patch_size", "millions", "exactly"),
    [
        ("Ti", 16, 5.7, 5_717_416),
        ("S", 16, 22.1, 22_050_664),
        ("B", 16, 86.6, 86_567_656),
        ("L", 16, 304.3, 304_326_632),
        ("H", 14, 632.0, 632_045_800),
    ],
)
def test_sizes_of_the_papers(variant, patch_size, millions, exactly):
    """At 224 pixels and 1,000 classes; the exact ones are those of the published weights."""
    config = Config(variant=variant, patch_size=patch_size, num_classes=1000)
    assert num_parameters(config) == exactly
    assert round(exactly / 1e6, 1) == millions


def test_vit_lite_7_4():
    """Hassani et al. 2021: 3.72 million."""
    config = Config(
        image_size=32,
        patch_size=4,
        d_model=256,
        num_layers=7,
        num_heads=4,
        d_ff=512,
        num_classes=10,
    )
    assert num_parameters(config) == 3_722_250


def test_a_size_of_the_variant_can_be_replaced():
    config = Config(variant="S", num_layers=6, num_classes=10)
    assert (config.d_model, config.num_layers, config.num_heads, config.d_ff) == (384, 6, 6, 1536)
    assert config.init_std == 384**-0.5


def test_patches_are_those_of_a_convolution():
    images = pixels(2, 3, 8, 12)
    weight = torch.randn(5, 3, 4, 4)
    expected = torch.nn.functional.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(images, 4) @ weight.flatten(1).T, expected)


@pytest.mark.parametrize(("height", "width", "patch_size"), [(8, 12, 4), (9, 3, 3), (4, 4, 4)])
def test_patches_and_back(height, width, patch_size):
    images = pixels(2, 3, height, width)
    patches = patchify(images, patch_size)
    grid = (height // patch_size, width // patch_size)
    assert patches.shape == (2, grid[0] * grid[1], 3 * patch_size**2)
    assert torch.equal(unpatchify(patches, patch_size, grid), images)


def test_an_image_of_broken_patches():
    with pytest.raises(ValueError, match="18 x 16 pixels has no whole number of patches of 4"):
        model()(pixels(1, 3, 16, 18))


def test_positions_tell_patches_apart():
    """Without them, attention to all patches does not see their order."""
    images = pixels()
    shifted = images.roll(4, dims=3)
    for positions in ("learned", "sincos"):
        for pooling in ("class_token", "mean"):
            one = model(positions=positions, pooling=pooling, init_std=0.5).eval()
            assert (one.embed(images) - one.embed(shifted)).abs().max() > 0.01


def test_sincos_positions_are_those_of_the_masked_autoencoder():
    """By its formula: the first half of the features tells the column, the second the row."""
    layer = model(positions="sincos").encoder.positions
    table, front = layer(torch.zeros(1, 16, 16), (4, 4))
    assert torch.equal(front, torch.zeros(1, 16))
    for patch in range(16):
        for half, place in enumerate((patch % 4, patch // 4)):
            for n in range(4):
                angle = place / 10_000 ** (n / 4)
                assert table[0, patch, 8 * half + n] == pytest.approx(math.sin(angle), abs=1e-6)
                assert table[0, patch, 8 * half + 4 + n] == pytest.approx(math.cos(angle), abs=1e-6)


def test_sincos_positions_stretch_over_larger_images():
    """Twice as many patches: two of them share the place of one, a quarter left and right of it."""
    layer = model(positions="sincos").encoder.positions
    table, _ = layer(torch.zeros(1, 64, 16), (8, 8))
    columns = [math.asin(table[0, patch, 0].item()) for patch in range(4)]
    assert columns == pytest.approx([-0.25, 0.25, 0.75, 1.25], abs=1e-5)


def test_learned_positions_stretch():
    """Over twice as many columns: two share the place of one, and their mean is its value."""
    rising = torch.arange(8.0).repeat(8).reshape(64, 1)  # by column
    stretched = interpolate_positions(rising, (8, 8), (8, 16)).reshape(8, 8, 2)
    pairs = stretched.mean(dim=2)[:, 2:6]  # away from the edges
    torch.testing.assert_close(pairs, torch.arange(2.0, 6.0).expand(8, 4))
    assert interpolate_positions(rising, (8, 8), (8, 8)) is rising


def test_pooling():
    images = pixels()
    first = model(pooling="class_token").eval()
    features = first.encoder(images)
    assert features.shape == (2, 17, 16)
    assert torch.equal(first.embed(images), features[:, 0])
    mean = model(pooling="mean").eval()
    torch.testing.assert_close(mean.embed(images), mean.encoder(images)[:, 1:].mean(1))
    bare = model(pooling="mean", class_token=False).eval()
    assert bare.encoder(images).shape == (2, 16, 16)
    torch.testing.assert_close(bare.embed(images), bare.encoder(images).mean(1))


def test_layer_scale():
    """With a factor of nearly 0 the blocks are the identity."""
    images = pixels()
    scaled = model(layer_scale=1e-12).eval()
    names = [name for name, _ in scaled.named_parameters() if name.endswith("join.scale.weight")]
    assert len(names) == 2 * TINY.num_layers
    without = model(layer_scale=1e-12, num_layers=1).eval()
    without.encoder.blocks = torch.nn.ModuleList()
    without.load_state_dict(scaled.state_dict(), strict=False)
    torch.testing.assert_close(scaled(images), without(images))


def test_stochastic_depth_drops_whole_samples():
    torch.manual_seed(0)
    dropped = StochasticDepth(0.25).train()(torch.ones(4000, 3, 2))
    rows = dropped.flatten(1)
    assert rows.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(rows.amin(1), rows.amax(1))
    assert (rows[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(StochasticDepth(0.25).eval()(rows), rows)


def test_stochastic_depth_rises_over_the_blocks():
    deep = model(stochastic_depth=0.2)
    rates = [getattr(block.attention_join, "depth", None) for block in deep.blocks]
    assert rates[0] is None
    assert [rate.probability for rate in rates[1:]] == pytest.approx([0.1, 0.2])


def test_qk_norm_bounds_the_attention():
    """Queries and keys of any size give the same attention."""
    images = pixels()
    normed = model(qk_norm=True).eval()
    before = normed(images)
    with torch.no_grad():
        for block in normed.blocks:
            block.attention.query_key_value.weight[:32] *= 100  # of queries and keys
    torch.testing.assert_close(normed(images), before, rtol=1e-3, atol=1e-4)


def test_initial_weights_have_the_deviation_of_the_config():
    """Those that join the residual stream a smaller one, by the number of them."""
    wide = model(d_model=64, init_std=0.5)
    for block in wide.blocks:
        for inner in (block.attention.query_key_value, block.feed_forward.up):
            assert inner.weight.std().item() == pytest.approx(0.5, rel=0.05)
        for last in (block.attention.output, block.feed_forward.down):
            assert last.weight.std().item() == pytest.approx(0.5 / 6**0.5, rel=0.05)
    derived = model(d_model=64, init_std=0.0).blocks[0].attention.query_key_value
    assert derived.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    for given, std in (({}, 0.02), ({"position_std": 0.2}, 0.2)):
        positions = model(d_model=256, image_size=64, **given).encoder.positions.table
        assert positions.weight.std().item() == pytest.approx(std, rel=0.05)


def test_every_norm_has_the_epsilon_of_the_config():
    norms = [
        one
        for one in model(qk_norm=True, norm_epsilon=0.5).modules()
        if isinstance(one, torch.nn.LayerNorm)
    ]
    assert [one.eps for one in norms] == [0.5] * (4 * TINY.num_layers + 1)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "stochastic_depth"])
def test_random_parts_act_in_training_alone(name):
    images, random = pixels(), model(**{name: 0.5})
    random.head.weight.data.normal_()
    assert not torch.equal(random.train()(images), random(images))
    assert torch.equal(random.eval()(images), random(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "image_size 30 is no multiple of patch_size 4"),
        ({"num_heads": 3}, "d_model 16 is no multiple of 3 heads"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"d_model": 18, "positions": "sincos"}, "fills fours, but d_model is 18"),
        ({"class_token": False}, "pooling class_token needs class_token=true"),
        ({"stochastic_depth": 1.0}, "stochastic_depth is 1.0; it must be at least 0 and below 1"),
        ({"layer_scale": -1.0}, "layer_scale is -1.0"),
        ({"patch_size": -4}, "patch_size is -4; it must be at least 1"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
