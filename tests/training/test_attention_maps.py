"""Captured attention weights against attention itself, and the pictures of them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pipeline.manifest import Manifest
from training.attention_maps import (
    GAP,
    attend,
    draw_over_image,
    draw_over_tokens,
    heat_colours,
    look_at_text,
    over_patches,
    pictures_of_image,
    pictures_of_text,
    rollout,
    tile,
)
from training.data.tokens import Sequences
from training.kinds import text
from training.layers import attention
from training.layers.attention import Attention, Heads, capture_attention
from training.lettering import LINE, entitle
from training.models import transformer, vit
from training.tasks import causal_lm

DECODER = transformer.Config(
    vocab_size=32, d_model=32, num_layers=3, num_heads=4, max_positions=16, positions="rotary"
)
VIT = vit.Config(
    image_size=32, patch_size=8, d_model=32, num_layers=2, num_heads=4, num_classes=5, init_std=0.3
)


def decoder(**changes):
    torch.manual_seed(0)
    return transformer.Model(dataclasses.replace(DECODER, **changes)).eval()


def tokens():
    return torch.randint(32, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["all", "causal", "masked", "cached"])
def test_weights_times_values_are_what_torch_computes(monkeypatch, kind, num_kv_heads):
    torch.manual_seed(0)
    layer = Attention(
        32,
        Heads(4, num_kv_heads, 8),
        causal=kind in {"causal", "cached"},
        bias=True,
        dropout=0.0,
        stds=(0.4, 0.4),
    ).eval()
    seen = []

    def attend_and_see(q, k, v, **settings):
        result = F_attention(q, k, v, **settings)
        seen.append((v.repeat_interleave(q.shape[1] // v.shape[1], dim=1), result))
        return result

    F_attention = F.scaled_dot_product_attention  # noqa: N806
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend_and_see)
    x, mask, cache = torch.randn(2, 9, 32), None, None
    if kind == "masked":
        mask = (torch.rand(2, 1, 9, 9) < 0.5).tril() | torch.eye(9, dtype=torch.bool)
    if kind == "cached":
        cache = attention.Cache()
    expected = layer(x, None, mask, cache)
    if kind == "cached":
        expected = layer(x[:, :1], None, None, cache)
        cache._kept = tuple(kept[:, :, :9] for kept in cache._kept)
    with capture_attention(layer) as captured:
        again = layer(x[:, :1] if kind == "cached" else x, None, mask, cache)
    assert torch.equal(again, expected)
    (weights,) = captured
    values, result = seen[-1]
    torch.testing.assert_close(weights @ values, result, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_layers_come_in_order_and_only_while_asked():
    model = decoder()
    with capture_attention(model) as captured:
        expected = model.features(tokens())
    assert [weights.shape for weights in captured] == [(2, 4, 11, 11)] * 3
    assert torch.equal(model.features(tokens()), expected)
    assert len(captured) == 3
    assert all(block.attention.captured is None for block in model.blocks)
    weights = attend(model.train(), model.features, tokens())
    assert model.training
    for layer, expected_weights in zip(weights, captured, strict=True):
        assert torch.equal(layer, expected_weights[0])


def test_an_error_inside_ends_the_capture():
    model = decoder()
    with pytest.raises(ValueError, match="longer"), capture_attention(model):
        model.features(torch.zeros(1, 99, dtype=torch.int64))
    assert all(block.attention.captured is None for block in model.blocks)


def test_rollout_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 2, 4, 4, generator=generator).softmax(-1)
    expected = torch.eye(4)
    for layer in weights:
        mixed = 0.5 * (layer[0] + layer[1]) / 2 + 0.5 * torch.eye(4)
        expected = mixed @ expected
    torch.testing.assert_close(rollout(weights), expected)
    torch.testing.assert_close(rollout(weights).sum(-1), torch.ones(4))


def test_what_an_image_is_looked_at():
    weights = torch.arange(2 * 7 * 7.0).reshape(2, 7, 7)
    ofclass = over_patches(weights, (2, 3), of_class_token=True)
    assert torch.equal(ofclass, weights[:, 0, 1:].reshape(2, 2, 3))
    of_mean = over_patches(weights, (2, 3), of_class_token=False)
    assert torch.equal(of_mean, weights[:, 1:, 1:].mean(1).reshape(2, 2, 3))
    bare = over_patches(weights[:, 1:, 1:], (2, 3), of_class_token=False)
    assert torch.equal(bare, of_mean)


def test_colours_run_from_dark_to_light():
    colours = heat_colours(torch.tensor([-1.0, 0.0, 0.125, 0.25, 0.5, 1.0, 2.0]))
    assert colours.tolist() == [
        [0, 0, 4],
        [0, 0, 4],
        [40.5, 9, 64],
        [81, 18, 124],
        [183, 55, 121],
        [252, 253, 191],
        [252, 253, 191],
    ]


def test_the_brightest_place_is_the_patch_that_is_looked_at():
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1.0
    picture = draw_over_image(heat, torch.full((32, 32, 3), 100, dtype=torch.uint8))
    assert picture.shape == (224, 224, 3)
    brightness = picture.float().sum(-1).reshape(4, 56, 4, 56).mean((1, 3))
    assert brightness.argmax() == 1 * 4 + 2
    assert picture.dtype == torch.uint8


def test_squares_of_tokens():
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    picture = draw_over_tokens(weights, ["a", " bcd"])
    squares = picture[-2 * LINE :, -2 * LINE :].reshape(2, LINE, 2, LINE, 3)
    expected = heat_colours(weights.sqrt()).round().to(torch.uint8)
    assert torch.equal(squares, expected[:, None, :, None].expand_as(squares))
    names = picture[-2 * LINE :, : -2 * LINE].float()
    dark = [(255 - names[LINE * row : LINE * (row + 1)]).sum() for row in (0, 1)]
    assert dark[1] > 2 * dark[0] > 0  # four letters against one


def test_a_grid():
    pictures = [torch.full((3, 5, 3), value, dtype=torch.uint8) for value in range(3)]
    grid = tile(pictures)
    assert grid.shape == (6 + GAP, 10 + GAP, 3)
    assert torch.equal(grid[:3, 5 + GAP :], pictures[1])
    assert torch.equal(grid[3 + GAP :, :5], pictures[2])
    assert (grid[3:, 5:] == 255).all()
    wider = tile([pictures[0], torch.zeros(4, 7, 3, dtype=torch.uint8)])
    assert wider.shape == (4, 14 + GAP, 3)
    assert torch.equal(wider[:3, :5], pictures[0]) and (wider[:3, 5 : 7 + GAP] == 255).all()


def test_a_text_is_looked_at_inside_its_documents():
    """Where the batch tells them; weights of another document are nothing, not merely little."""
    model, names = decoder(), [str(n) for n in range(11)]
    documents = torch.tensor([[0] * 4 + [1] * 7])
    positions = torch.tensor([[*range(4), *range(7)]])
    batch = {"tokens": tokens()[:1], "positions": positions, "documents": documents}
    masked = look_at_text(model, batch, names, with_rollout=True)
    halves = [
        attend(model, model.features, batch["tokens"][:, part]) for part in (slice(4), slice(4, 11))
    ]
    whole = torch.zeros(3, 4, 11, 11)
    whole[..., :4, :4], whole[..., 4:, 4:] = halves
    expected = pictures_of_text(whole, names, with_rollout=True)
    plain = look_at_text(model, {"tokens": batch["tokens"]}, names, with_rollout=True)
    assert masked.keys() == expected.keys()
    for name, picture in expected.items():
        assert (masked[name].int() - picture.int()).abs().max() <= 1, name
        assert not torch.equal(plain[name], masked[name]), name


@pytest.mark.parametrize("mask_documents", [True, False])
def test_what_a_text_run_shows_is_what_its_task_sees(monkeypatch, mask_documents):
    """Of a validation sequence of 60 tokens the first 48, with a document that starts at 10."""

    class Split:
        def read_in_file_order(self, numbers):
            rows, starts = np.arange(61)[None] % 30, [np.array([10, 55])]
            return Sequences(
                rows,
                starts,
                positions=numbers,
                weights=np.ones(1, np.bool_),
                keys=np.zeros(1, np.uint64),
            )

        def close(self):
            pass

    monkeypatch.setattr("training.kinds.text.open_split", lambda *_, split: Split())
    task = causal_lm.Task(
        causal_lm.Config(mask_documents=mask_documents), vocab_size=32, end_of_document=0
    )
    manifest = Manifest(kind="text", splits={"validation": ("shard",)}, config={}, libraries={})
    batch = text._first_tokens(None, manifest, task)
    assert torch.equal(batch["tokens"], torch.arange(48)[None] % 30)
    if mask_documents:  # the token in front of a document is, as an input, its first
        assert batch["documents"].tolist() == [[0] * 9 + [1] * 39]
        assert batch["positions"].tolist() == [[*range(9), *range(39)]]
    else:
        assert batch.keys() == {"tokens", "targets"}


def test_pictures_by_name():
    model = decoder(num_layers=2, num_heads=2, num_kv_heads=1)
    weights = attend(model, model.features, tokens())
    pictures = pictures_of_text(weights, [str(n) for n in range(11)], with_rollout=True)
    heads = [f"layer-0{layer}{end}" for layer in (1, 2) for end in ("", "-head-01", "-head-02")]
    assert list(pictures) == [*heads, "rollout"]
    one, two = pictures["layer-01-head-01"], pictures["layer-01-head-02"]
    titled = [entitle(one, "head 1"), entitle(two, "head 2")]
    assert torch.equal(pictures["layer-01"], tile(titled))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("pooling", ["class_token", "mean"])
def test_pictures_of_an_image(pooling):
    torch.manual_seed(0)
    model = vit.Model(dataclasses.replace(VIT, pooling=pooling))
    pixels = torch.randn(1, 3, 32, 48)  # another shape than in training
    weights = attend(model, model.embed, pixels)
    assert weights.shape == (2, 4, 25, 25)
    image = torch.randint(256, (32, 48, 3), dtype=torch.uint8)
    pictures = pictures_of_image(
        weights, image, (4, 6), of_class_token=pooling == "class_token", with_rollout=False
    )
    assert len(pictures) == 2 + 2 * 4
    assert pictures["layer-02-head-03"].shape == (224, 336, 3)
