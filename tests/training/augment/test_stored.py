"""Boxes of stored images against Pillow's decoding and a resize in float64."""

import io

import numpy as np
import PIL.Image
import pytest

from training.augment.crop import center_box
from training.augment.recipe import Recipe, render
from training.augment.stored import open_stored, resized, whole_jpeg


def photo(width, height):
    """Structure of several sizes, so that a bad filter shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 7) * np.cos(columns / 11), np.sin(columns / 5), np.cos(rows / 13)]
    return PIL.Image.fromarray((np.dstack(waves) * 100 + 128).astype(np.uint8))


def file_of(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bicubic(old, new, begin, end):
    """Weights (new, old) of a stretch of a side, with a = -0.5 as Keys 1981 has it."""
    scale = (end - begin) / new
    wide = max(scale, 1)
    x = abs(np.arange(old) + 0.5 - (begin + (np.arange(new)[:, None] + 0.5) * scale)) / wide
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def decibels(found, expected):
    return 10 * np.log10(255**2 / np.mean((found - np.clip(expected, 0, 255)) ** 2))


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 200), (20, 10, 240, 150), (100.5, 20.25, 130.5, 50.25)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_box_is_resized_as_by_float64(box, kind):
    encoded = file_of(photo(300, 200), kind)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(encoded)), float)
    down, across = bicubic(200, 64, box[1], box[3]), bicubic(300, 64, box[0], box[2])
    expected = np.einsum("yY,xX,YXc->yxc", down, across, pixels)
    stored = open_stored(encoded, of_dataset=True)
    assert (stored.opened is None) is (kind == "JPEG")
    assert decibels(resized(stored, box, 64), expected) > 50


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}]
)
def test_jpeg_of_its_own_size_has_the_pixels_of_pillow(options):
    encoded = file_of(photo(63, 63), quality=80, **options)
    found = resized(open_stored(encoded, of_dataset=True), (0, 0, 63, 63), 63)
    np.testing.assert_array_equal(found, np.asarray(PIL.Image.open(io.BytesIO(encoded))))


def test_a_whole_jpeg_has_the_pixels_of_the_usual_way():
    encoded = file_of(photo(40, 40), quality=80)
    usual = resized(open_stored(encoded, of_dataset=True), (0, 0, 40, 40), 40)
    np.testing.assert_array_equal(whole_jpeg(memoryview(encoded), 40), usual)


@pytest.mark.parametrize(
    ("size", "mode", "options"),
    [
        ((41, 40), "RGB", {}),
        ((400, 400), "RGB", {}),
        ((40, 40), "L", {}),
        ((40, 40), "CMYK", {}),
        ((40, 40), "RGB", {"progressive": True}),
    ],
)
def test_all_others_go_the_usual_way(size, mode, options):
    """CMYK above all, of which libjpeg-turbo makes other colours."""
    encoded = file_of(photo(*size).convert(mode), **options)
    assert whole_jpeg(encoded, 40) is None
    expected = resized(open_stored(encoded, of_dataset=True), center_box(*size, 1.0), 40)
    recipe = Recipe(size=40, crop="random_padded", padding=0)
    np.testing.assert_array_equal(render(encoded, recipe, key=1), expected)


def test_a_thumbnail_of_that_size_or_a_fault_go_the_usual_way():
    thumbnail = file_of(photo(40, 40))
    behind = file_of(photo(400, 400), exif=b"Exif\0\0" + thumbnail)
    assert whole_jpeg(behind, 40) is None
    assert whole_jpeg(thumbnail[:-100], 40) is None


def test_grey_and_cmyk_become_rgb():
    """A dataset holds grey files as the corpus had them."""
    for mode, kind in (("L", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG")):
        encoded = file_of(photo(40, 40).convert(mode), kind)
        found = resized(open_stored(encoded, of_dataset=True), (0, 0, 40, 40), 40)
        expected = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize(("side", "shrink"), [(50, 4), (75, 4), (76, 2), (100, 2), (151, 1)])
def test_a_large_crop_is_shrunk_on_load_to_twice_its_side_at_least(side, shrink, monkeypatch):
    encoded = file_of(photo(800, 600), quality=95)
    shapes, whole = [], PIL.Image.open(io.BytesIO(encoded))
    from training.augment import stored as module

    resize = module._resize

    def noting(pixels, box, side):
        shapes.append(pixels.shape)
        return resize(pixels, box, side)

    monkeypatch.setattr(module, "_resize", noting)
    found = resized(open_stored(encoded, of_dataset=True), (100, 0, 700, 600), side)
    assert shapes == [(600 // shrink, 800 // shrink, 3)]
    expected = whole.resize((side, side), PIL.Image.Resampling.BICUBIC, box=(100, 0, 700, 600))
    assert decibels(found.astype(float), np.asarray(expected, float)) > 38


def test_faults_that_pillow_puts_up_with_and_those_that_it_does_not():
    encoded = file_of(photo(64, 64))
    odd = encoded[:-2] + b"\0\0\0\0" + encoded[-2:]  # bytes that belong to nothing
    found = resized(open_stored(odd, of_dataset=True), (0, 0, 64, 64), 64)
    np.testing.assert_array_equal(found, np.asarray(PIL.Image.open(io.BytesIO(encoded))))
    with pytest.raises(OSError, match="truncated"):
        resized(open_stored(encoded[:-200], of_dataset=True), (0, 0, 64, 64), 64)
    for nothing in (b"", b"\xff\xd8", b"no image"):
        with pytest.raises(PIL.UnidentifiedImageError):
            open_stored(nothing, of_dataset=True)
