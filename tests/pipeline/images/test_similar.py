"""Close hashes against all pairs compared; thumbnails against numpy's correlation."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import similar
from pipeline.images.similar import band_values, bands, close_pairs, equal_groups, resemblance

RNG = np.random.default_rng(0)


def all_pairs(hashes, radius):
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= radius
    return np.argwhere(np.triu(near, 1))


def flipped(value, bits):
    for bit in bits:
        value ^= 1 << int(bit)
    return value


def planted(count, most):
    """Random hashes, and for each some that differ in up to `most` bits."""
    base = RNG.integers(0, 2**64, count, np.uint64).tolist()
    near = [flipped(h, RNG.choice(64, RNG.integers(0, most + 1), replace=False)) for h in base]
    return np.array(base + near, np.uint64)


@given(st.integers(0, 63), st.integers(1, 64))
def test_bands_cover_every_bit_once(radius, width):
    cut = bands(radius, tuple(range(width)))
    assert [bit for band in cut for bit in band] == list(range(width))
    assert len(cut) == radius + 1
    widths = {len(band) for band in cut}
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("at_once", [1024, 10])
def test_close_pairs_are_all_pairs(radius, at_once, monkeypatch):
    monkeypatch.setattr(similar, "COMPARED_AT_ONCE", at_once)
    hashes = planted(300, radius + 2)
    expected = all_pairs(hashes, radius)
    assert len(expected) > 50
    np.testing.assert_array_equal(close_pairs(hashes, radius), expected)


@pytest.mark.parametrize("mask", [0xFF, 0xFFFFFFFF, 0xFFFF00000000FFFF])
def test_hot_bands(mask, monkeypatch):
    """Bits that are equal in all hashes."""
    monkeypatch.setattr(similar, "COMPARED_AT_ONCE", 10)
    hashes = np.unique(planted(200, 6) & np.uint64(mask))
    for radius in (2, 4, 8):
        np.testing.assert_array_equal(close_pairs(hashes, radius), all_pairs(hashes, radius))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.integers(0, 16))
def test_any_hashes(values, radius):
    hashes = np.array(values, np.uint64)
    np.testing.assert_array_equal(close_pairs(hashes, radius), all_pairs(hashes, radius))


@pytest.mark.parametrize("radius", [2, 8])
def test_the_bands_together_find_what_all_do(radius):
    hashes = planted(300, radius + 2)
    cut = bands(radius)
    found = [close_pairs(hashes, radius, band) for band in cut]
    for band, pairs in zip(cut, found, strict=True):
        values = band_values(hashes, band)
        chosen = [pair for pair in all_pairs(hashes, radius) if values[pair[0]] == values[pair[1]]]
        np.testing.assert_array_equal(pairs, np.array(chosen).reshape(-1, 2))
    together = np.unique(np.concatenate(found), axis=0)
    np.testing.assert_array_equal(together, all_pairs(hashes, radius))


def test_band_values_and_groups():
    hashes = np.array([0b1011, 0b0011, 2**63 | 0b0001], np.uint64)
    assert band_values(hashes, (0, 1)).tolist() == [0b11, 0b11, 0b01]
    assert band_values(hashes, ()).tolist() == [0, 0, 0]
    groups = equal_groups(np.array([5, 3, 5, 1, 3, 5]))
    assert [group.tolist() for group in groups] == [[1, 4], [0, 2, 5]]
    assert equal_groups(np.empty(0)) == []


def picture(seed, size=(320, 320)):
    values = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    return PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.BICUBIC)


def thumbnail(image):
    return np.asarray(image.resize((32, 32), PIL.Image.Resampling.LANCZOS))


def test_the_correlation_is_numpys():
    left = np.stack([thumbnail(picture(seed)) for seed in range(10)])
    right = np.stack([thumbnail(picture(seed // 2)) for seed in range(10)])
    expected = [
        np.corrcoef(one.ravel(), other.ravel())[0, 1]
        for one, other in zip(left, right, strict=True)
    ]
    np.testing.assert_allclose(resemblance(left, right, cropped=False), expected, atol=1e-12)
    np.testing.assert_array_equal(
        resemblance(left, right, cropped=True), resemblance(right, left, cropped=True)
    )


@pytest.mark.parametrize("share", [0.02, 0.05, 0.08, 0.1])
def test_a_cropped_image_is_recognised(share):
    for seed in range(5):
        image = picture(seed)
        edge = 320 * share / 2
        crop = image.crop(tuple(map(round, (edge, edge, 320 - edge, 320 - edge))))
        pair = thumbnail(image)[None], thumbnail(crop)[None]
        assert resemblance(*pair, cropped=True)[0] > 0.95
        assert resemblance(*pair, cropped=True)[0] >= resemblance(*pair, cropped=False)[0]


def test_brightness_and_contrast_do_not_matter_but_content_does():
    image = thumbnail(picture(0))
    darker = (image * 0.5 + 20).astype(np.uint8)
    assert resemblance(image[None], darker[None], cropped=False)[0] > 0.999
    assert resemblance(image[None], 255 - image[None], cropped=True)[0] < 0
    assert abs(resemblance(image[None], thumbnail(picture(1))[None], cropped=True)[0]) < 0.8


def test_flat_thumbnails_are_like_nothing():
    flat = np.full((1, 32, 32), 200, np.uint8)
    faint = flat + (np.indices((1, 32, 32)).sum(0) % 2).astype(np.uint8)
    for one in (flat, faint):
        assert resemblance(one, one, cropped=True)[0] == 0
    assert resemblance(flat[:0], flat[:0], cropped=True).shape == (0,)


def test_jpeg_noise_is_nothing():
    image = picture(3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    pair = thumbnail(image)[None], thumbnail(PIL.Image.open(file))[None]
    assert resemblance(*pair, cropped=False)[0] > 0.99
