"""JPEG by libjpeg-turbo's own interface against Pillow, file by file."""

import io

import numpy as np
import PIL.Image
import pytest

from pipeline.images import jpeg
from pipeline.images.decode import Config, decode, load, open_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), np.uint8)
SMOOTH = PIL.Image.fromarray(NOISE).resize((1061, 733), PIL.Image.Resampling.BICUBIC)


def file_of(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(encoded):
    return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))


KINDS = {
    "4:4:4": file_of(PIL.Image.fromarray(NOISE), subsampling=0),
    "4:2:2": file_of(PIL.Image.fromarray(NOISE), subsampling=1),
    "4:2:0": file_of(PIL.Image.fromarray(NOISE), subsampling=2),
    "progressive": file_of(PIL.Image.fromarray(NOISE), progressive=True),
    "stored as RGB": file_of(PIL.Image.fromarray(NOISE), keep_rgb=True),
    "greyscale": file_of(PIL.Image.fromarray(NOISE[..., 0])),
    "restarts": file_of(PIL.Image.fromarray(NOISE), restart_marker_rows=1),
    "1 x 1": file_of(PIL.Image.fromarray(NOISE[:1, :1])),
}


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_those_of_pillow(name):
    expected = by_pillow(KINDS[name])
    found = jpeg.decode(KINDS[name], expected.shape[1::-1], shrink=1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_shrunk_pixels_are_those_of_pillow(shrink):
    encoded = file_of(SMOOTH)
    image = PIL.Image.open(io.BytesIO(encoded))
    image.draft("RGB", (1061 // shrink, 733 // shrink))
    found = jpeg.decode(encoded, (1061, 733), shrink=shrink)
    np.testing.assert_array_equal(found, np.asarray(image))
    loaded = load(open_image(encoded, Config()), Config(), wished_side=733 // (2 * shrink))
    np.testing.assert_array_equal(loaded.pixels, found)


def test_a_fault_is_judged_by_pillow():
    """One that it puts up with, and one that it does not."""
    whole = KINDS["4:2:0"]
    odd = whole[:-2] + b"\0\0\0\0" + whole[-2:]  # bytes that belong to nothing
    assert jpeg.decode(odd, (53, 37), shrink=1) is None
    np.testing.assert_array_equal(decode(odd, Config()).pixels, by_pillow(whole))
    cut = whole[: len(whole) // 2]
    assert jpeg.decode(cut, (53, 37), shrink=1) is None
    assert decode(cut, Config()).reason == "truncated_image"


def test_another_size_than_the_header_told_is_a_fault():
    assert jpeg.decode(KINDS["4:4:4"], (53, 38), shrink=1) is None


def test_files_have_colours_at_half_the_resolution_and_nothing_else():
    encoded = jpeg.encode(np.asarray(SMOOTH), quality=90)
    image = PIL.Image.open(io.BytesIO(encoded))
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert (
        image.quantization == PIL.Image.open(io.BytesIO(file_of(SMOOTH, quality=90))).quantization
    )
    error = np.asarray(image, float) - np.asarray(SMOOTH, float)
    assert np.mean(error**2) < 255**2 / 10**3.5
