"""Mixup and CutMix: shares, boxes, pairs, and what the device makes of them."""

import numpy as np
import pytest
import torch

from training.augment.config import Config
from training.augment.draws import Draws, Purpose, sample_keys
from training.augment.mix import check_pairs, draw_beta, plan_mix
from training.augment.on_device import mix, neighbours, normalise

KEYS = sample_keys(3, np.arange(400))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_beta(alpha):
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    numbers = np.array([draw_beta(Draws(n, Purpose.MIX), alpha) for n in range(4000)])
    assert ((numbers >= 0) & (numbers <= 1)).all()
    assert numbers.mean() == pytest.approx(0.5, abs=0.03)
    assert numbers.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_both_rows_of_a_pair_share_their_numbers():
    plan = plan_mix(KEYS, Config(mixup_alpha=0.8, cutmix_alpha=1.0), image_size=16)
    for values in plan.values():
        assert np.array_equal(values[0::2], values[1::2])
    has_box = plan["mix_box"].any(axis=1)
    assert has_box.mean() == pytest.approx(0.5, abs=0.12)


def test_a_pair_depends_on_its_keys_alone():
    config = Config(mixup_alpha=0.8, cutmix_alpha=1.0)
    whole = plan_mix(KEYS, config, image_size=16)
    part = plan_mix(KEYS[6:10], config, image_size=16)
    assert all(np.array_equal(part[name], whole[name][6:10]) for name in whole)


def test_the_share_of_cutmix_is_the_area_that_stays():
    plan = plan_mix(KEYS, Config(cutmix_alpha=1.0), image_size=16)
    left, top, right, bottom = plan["mix_box"].T
    assert np.array_equal(plan["share"], np.float32(1 - (right - left) * (bottom - top) / 256))
    assert (plan["mix_box"] >= 0).all()
    assert (plan["mix_box"] <= 16).all()


@pytest.mark.parametrize(("probability", "mixed"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_probability(probability, mixed):
    config = Config(mixup_alpha=5.0, mix_probability=probability)
    plan = plan_mix(KEYS, config, image_size=16)
    assert (plan["share"] < 1).mean() == pytest.approx(mixed, abs=0.12)
    assert config.mixes is (probability > 0)


def test_on_the_device():
    """Against a loop over rows."""
    plan = plan_mix(KEYS[:8], Config(mixup_alpha=0.8, cutmix_alpha=1.0), image_size=6)
    pixels = torch.randn(8, 3, 6, 6)
    mixed = mix(pixels, **{name: torch.from_numpy(value) for name, value in plan.items()})
    for row in range(8):
        own, other = pixels[row], pixels[row ^ 1]
        left, top, right, bottom = plan["mix_box"][row]
        if right > left and bottom > top:
            expected = own.clone()
            expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        else:
            share = plan["share"][row]
            expected = share * own + (1 - share) * other
        torch.testing.assert_close(mixed[row], expected)
    assert neighbours(torch.arange(4)).tolist() == [1, 0, 3, 2]
    assert neighbours(torch.arange(3)).tolist() == [1, 0, 2]


def test_normalise():
    pixels = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
    found = normalise(pixels, mean=mean, std=std)
    expected = (pixels.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    torch.testing.assert_close(found.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_an_odd_micro_batch():
    with pytest.raises(ValueError, match="micro_batch_size is 3, but mixup and CutMix mix pairs"):
        check_pairs(Config(mixup_alpha=0.2), micro_batch_size=3)
    check_pairs(Config(), micro_batch_size=3)
