"""Perceptual hashes against the definition in float64, and what changes them."""

import numpy as np
import PIL.Image
import pytest

from pipeline.images import appearance as module
from pipeline.images.appearance import Appearance


def appearance(image, stored_size):
    return module.appearance(np.asarray(image), stored_size)


def picture(seed=0, size=(300, 200)):
    """Smooth random patches, so that all low frequencies are there."""
    values = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.BICUBIC)


def reference_hash(thumbnail):
    """Cosine transform of type II by its sum, 8 x 8 lowest, above the median."""
    grey = np.frombuffer(thumbnail, np.uint8).reshape(32, 32).astype(float)
    place = (np.arange(32) + 0.5) * np.pi / 32
    waves = np.array(
        [
            [(grey * np.outer(np.cos(v * place), np.cos(u * place))).sum() for u in range(8)]
            for v in range(8)
        ]
    )
    bits = (waves > np.median(waves)).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_hash_is_its_definition(seed):
    seen = appearance(picture(seed), (300, 200))
    assert seen.hash == reference_hash(seen.thumbnail)
    turned = np.frombuffer(seen.thumbnail, np.uint8).reshape(32, 32)[:, ::-1]
    assert seen.mirrored_hash == reference_hash(turned.tobytes())
    assert seen.hash.bit_count() == 32


def test_the_thumbnail_is_grey_and_small():
    image = picture()
    seen = appearance(image, (300, 200))
    plain = image.convert("L").resize((32, 32), PIL.Image.Resampling.LANCZOS)
    found = np.frombuffer(seen.thumbnail, np.uint8).reshape(32, 32).astype(int)
    assert np.abs(found - np.asarray(plain, int)).max() <= 3  # reduced in two steps


@pytest.mark.parametrize(
    ("change", "most"),
    [
        (lambda image: image.resize((150, 100)), 2),
        (lambda image: image.convert("L").convert("RGB"), 0),
        (lambda image: image.point(lambda value: value * 0.8), 2),
        (lambda image: image.quantize(64).convert("RGB"), 6),
    ],
)
def test_what_changes_the_hash_little(change, most):
    for seed in range(5):
        before, after = appearance(picture(seed), (1, 1)), appearance(change(picture(seed)), (1, 1))
        assert (before.hash ^ after.hash).bit_count() <= most


def test_a_mirror_image_has_the_other_hash():
    image = picture()
    turned = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = appearance(image, (1, 1)), appearance(turned, (1, 1))
    assert (one.mirrored_hash, one.hash) == (other.hash, other.mirrored_hash)
    assert one.hash != other.hash


def test_strangers_differ():
    hashes = [appearance(picture(seed), (1, 1)).hash for seed in range(30)]
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 10


def test_packing():
    seen = appearance(picture(), (30_000, 20_000))
    assert seen.pixels == 600_000_000
    assert len(seen.pack()) == 1048
    assert Appearance.unpack(seen.pack()) == seen


def test_a_flat_image_has_a_hash():
    assert appearance(PIL.Image.new("RGB", (50, 50), (9, 9, 9)), (50, 50)).hash == 1 << 63
