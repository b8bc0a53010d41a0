"""Crops, flips, policies and erasing: what each setting does, and which values are refused."""

import io
import math

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.augment.config import Config
from training.augment.crop import center_box, padded_offsets, random_box
from training.augment.draws import BatchDraws, Draws, Purpose, sample_keys
from training.augment.operations import ENHANCING, GEOMETRIC, PLAIN, apply
from training.augment.recipe import Recipe, render

NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
FILL = (1, 2, 3)


def encoded(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rendered(key=0, **recipe):
    return render(encoded(NOISE), Recipe(size=24, **recipe), key)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("area", [(0.0, 1.0), (0.5, 0.4), (0.1, 1.1), (math.nan, 1.0)]),
        ("max_aspect_ratio", [0.9, 101.0, math.nan]),
        ("padding", [-1, 1001]),
        ("crop_ratio", [0.0, 1.01, math.nan]),
        ("horizontal_flip", [-0.1, 1.1, math.nan]),
        ("num_operations", [-1, 101]),
        ("magnitude", [-0.1, 10.1]),
        ("erasing", [-0.1, 1.1]),
        ("mixup_alpha", [-0.1, math.inf]),
        ("cutmix_alpha", [-0.1, math.nan]),
        ("mix_probability", [-0.1, 1.1]),
        ("cutmix_probability", [-0.1, 1.1]),
        ("mean", [(0.5, 0.5, math.nan), (0.5, 0.5, math.inf), (0.5, 0.5), (124, 116, 104)]),
        ("std", [(0.0, 0.2, 0.2), (0.2, 0.2, math.inf), (0.2,), (58, 57, 57)]),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} is"):
            Config(**{name: value})


def test_the_bounds_themselves_are_allowed():
    Config(area=(1.0, 1.0), max_aspect_ratio=1.0, padding=0, crop_ratio=1.0, num_operations=0)
    Config(magnitude=0.0, erasing=1.0, horizontal_flip=0.0, mix_probability=1.0, mixup_alpha=0.0)
    Config(mean=(0.0, 1.0, 0.5), std=(1.0, 1.0, 0.001))
    Config(max_aspect_ratio=100.0, padding=1000, magnitude=10.0, cutmix_alpha=1000.0)


def test_numbers_are_these_on_every_machine():
    """A change of them changes every run."""
    draws = Draws(int(sample_keys(7, np.array([3]))[0]), Purpose.CROP)
    assert [draws.bits() for _ in range(2)] == [0x435D9F2A4297D53C, 0xD7FED09099F2413F]
    other = Draws(int(sample_keys(7, np.array([3]))[0]), Purpose.FLIP)
    assert other.bits() != 0x435D9F2A4297D53C


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    st.sampled_from(Purpose),
    st.integers(1, 2**32 - 1),
    st.floats(0, 1),
)
def test_numbers_of_many_samples_are_those_of_each(keys, purpose, stop, probability):
    many = BatchDraws(np.array(keys, np.uint64), purpose)
    found = list(zip(many.bits(), many.below(stop), many.chance(probability), strict=True))
    for key, own in zip(keys, found, strict=True):
        draws = Draws(key, purpose)
        assert own == (draws.bits(), draws.below(stop), draws.chance(probability))


@pytest.mark.parametrize("size", [(500, 375), (40, 300), (1, 1), (30_000, 2)])
def test_random_boxes_lie_in_the_image_and_in_the_bounds(size):
    width, height = size
    for key in range(300):
        draws = Draws(key, Purpose.CROP)
        box = random_box(width, height, draws, area=(0.2, 0.5), max_aspect_ratio=1.5)
        across, down = box[2] - box[0], box[3] - box[1]
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        if size == (500, 375):  # here a box fits; rounding moves a side by half a pixel
            assert 0.19 < across * down / (width * height) < 0.51
            assert 1 / 1.52 < across / down < 1.52


def test_central_boxes():
    assert center_box(640, 480, 0.875) == (110.0, 30.0, 530.0, 450.0)
    assert center_box(3, 8, 1.0) == (0.0, 2.5, 3.0, 5.5)


def test_padded_offsets_reach_every_place():
    found = padded_offsets(1, BatchDraws(np.arange(200, dtype=np.uint64), Purpose.CROP))
    assert {*map(tuple, found.tolist())} == {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}


def test_a_padded_crop_is_the_shifted_image_on_black():
    seen = set()
    for key in range(40):
        own = BatchDraws(np.array([key], np.uint64), Purpose.CROP)
        ((right, down),) = padded_offsets(4, own).tolist()
        expected = PIL.Image.fromarray(NOISE).crop((right, down, right + 24, down + 24))
        found = rendered(key, crop="random_padded", padding=4)
        np.testing.assert_array_equal(found, np.asarray(expected))
        seen.add((right, down))
    assert len(seen) > 20


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_padded_crop_beyond_the_image_is_black(flip):
    seen = set()
    for key in range(60):
        own = BatchDraws(np.array([key], np.uint64), Purpose.CROP)
        ((right, down),) = padded_offsets(40, own).tolist()
        expected = PIL.Image.fromarray(NOISE).crop((right, down, right + 24, down + 24))
        found = rendered(key, crop="random_padded", padding=40, horizontal_flip=flip)
        np.testing.assert_array_equal(found[:, ::-1] if flip else found, np.asarray(expected))
        seen |= {abs(right) < 24, abs(down) < 24}
    assert seen == {True, False}


def test_the_limit_of_pillow_is_not_ours(monkeypatch):
    """The pipeline took the image, by a limit that its user has set."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", NOISE[..., 0].size // 3)
    np.testing.assert_array_equal(rendered(), NOISE)


def test_flips():
    np.testing.assert_array_equal(rendered(), NOISE)
    np.testing.assert_array_equal(rendered(horizontal_flip=1.0), NOISE[:, ::-1])
    mirrored = [(rendered(key, horizontal_flip=0.5) != NOISE).any() for key in range(200)]
    assert 70 < sum(mirrored) < 130


def test_erasing_fills_one_rectangle_within_its_bounds():
    for key in range(60):
        rows, columns = np.nonzero((rendered(key, erasing=1.0) != NOISE).any(axis=2))
        down, across = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) > 0.9 * down * across  # noise hits the old value now and then
        assert 0.01 < down * across / 24**2 < 0.36
    kept = [np.array_equal(rendered(key, erasing=0.25), NOISE) for key in range(200)]
    assert 120 < sum(kept) < 180


def test_operations_of_no_strength_change_nothing_and_of_full_strength_do():
    image = PIL.Image.fromarray(NOISE // 2 + 60)  # no extreme values, as photographs have few
    before = np.asarray(image)
    by_strength = [*GEOMETRIC, *ENHANCING, "posterize", "solarize"]
    for name in by_strength:
        for reverse in (False, True):
            weak = apply(image, name, 0.0, reverse=reverse, fill=FILL)
            np.testing.assert_array_equal(np.asarray(weak), before, err_msg=name)
            strong = apply(image, name, 1.0, reverse=reverse, fill=FILL)
            assert (np.asarray(strong) != before).any(), name
    for name in set(PLAIN) - {*by_strength, "identity"}:
        assert (np.asarray(apply(image, name, 0.5, reverse=False, fill=FILL)) != before).any()


IMAGE_OPS = {
    "auto_contrast": lambda image, _: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, _: PIL.ImageOps.equalize(image),
    "invert": lambda image, _: PIL.ImageOps.invert(image),
    "posterize": lambda image, s: PIL.ImageOps.posterize(image, 8 - round(4 * s)),
    "solarize": lambda image, s: PIL.ImageOps.solarize(image, round(255 * (1 - s))),
    "contrast": lambda image, s: PIL.ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
}


@pytest.mark.parametrize("name", IMAGE_OPS)
@given(
    shape=st.sampled_from([(1, 1), (1, 40), (17, 3), (32, 32), (97, 96)]),
    values=st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
    strength=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_operations_of_tables_give_what_pillow_gives(name, shape, values, strength, seed):
    pixels = np.random.default_rng(seed).integers(values[0], values[1] + 1, (*shape, 3))
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    ours = apply(image, name, strength, reverse=False, fill=FILL)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(IMAGE_OPS[name](image, strength)))


def test_what_comes_from_outside_has_the_colour_of_the_recipe():
    image = PIL.Image.fromarray(NOISE)
    moved = np.asarray(apply(image, "translate_x", 1.0, reverse=False, fill=FILL))
    np.testing.assert_array_equal(moved[:, :10], np.broadcast_to(FILL, (24, 10, 3)))
    np.testing.assert_array_equal(moved[:, 10:], NOISE[:, :14])


@pytest.mark.parametrize("policy", ["rand_augment", "auto_augment_cifar10"])
def test_a_policy_changes_most_images_and_always_alike(policy):
    first = [rendered(key, policy=policy) for key in range(30)]
    again = [rendered(key, policy=policy) for key in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum((one != NOISE).any() for one in first) > 15
    assert len({one.tobytes() for one in first}) > 10


def test_rand_augment_without_operations():
    plain = rendered(policy="rand_augment", num_operations=0)
    np.testing.assert_array_equal(plain, NOISE)
