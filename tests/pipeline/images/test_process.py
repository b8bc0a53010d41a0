import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import encode, filter, resize
from pipeline.images.decode import BadImage
from pipeline.images.process import Config, Processed, process

RNG = np.random.default_rng(0)


def picture(width, height):
    """A picture with structure of several sizes, so that a bad filter shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 7) * np.cos(columns / 11), np.sin(columns / 5), np.cos(rows / 13)]
    return PIL.Image.fromarray((np.dstack(waves) * 100 + 128).astype(np.uint8))


def file_of(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def size_after(width, height, **config):
    chosen = resize.Config(**config)
    image = PIL.Image.new("RGB", (width, height))
    return resize.resize(image, resize.scaled_size(width, height, chosen), chosen).size


@pytest.mark.parametrize(
    ("size", "mode", "enlarge", "expected"),
    [
        ((500, 375), "none", False, (500, 375)),
        ((500, 375), "shorter_side", False, (341, 256)),
        ((375, 500), "longer_side", False, (192, 256)),
        ((500, 375), "center_crop", False, (256, 256)),
        ((500, 375), "pad", False, (256, 256)),
        ((100, 50), "shorter_side", False, (100, 50)),
        ((100, 50), "shorter_side", True, (512, 256)),
        ((100, 50), "longer_side", True, (256, 128)),
        ((100, 50), "center_crop", False, (50, 50)),
        ((100, 50), "center_crop", True, (256, 256)),
        ((100, 50), "pad", False, (256, 256)),
        ((30_000, 1), "longer_side", False, (256, 1)),
        ((1, 1), "pad", True, (256, 256)),
    ],
)
def test_sizes(size, mode, enlarge, expected):
    assert size_after(*size, mode=mode, enlarge=enlarge) == expected


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(["shorter_side", "longer_side"]),
    st.integers(1, 600),
)
def test_scaling_keeps_the_shape_and_never_enlarges(width, height, mode, size):
    scaled = resize.scaled_size(width, height, resize.Config(mode=mode, size=size))
    assert scaled[0] <= width and scaled[1] <= height and min(scaled) >= 1
    side = min(scaled) if mode == "shorter_side" else max(scaled)
    assert side == min(size, min(width, height) if mode == "shorter_side" else max(width, height))
    assert abs(scaled[0] * height - scaled[1] * width) <= max(width, height)


def test_pad_lies_in_the_middle_of_the_border():
    config = resize.Config(mode="pad", size=6, border=(1, 2, 3))
    padded = np.asarray(resize.resize(PIL.Image.new("RGB", (4, 2), "red"), (4, 2), config))
    expected = np.tile(np.array([1, 2, 3]), (6, 6, 1))
    expected[2:4, 1:5] = [255, 0, 0]
    np.testing.assert_array_equal(padded, expected)


def test_untouched_images_keep_their_bytes():
    encoded = file_of(picture(200, 100), quality=77)
    assert process(encoded, Config()) == Processed(encoded, 200, 100)
    png = file_of(picture(200, 100), "PNG")
    assert process(png, Config()).encoded != png
    asked = Config(encode=encode.Config(keep_untouched=False))
    assert process(encoded, asked).encoded != encoded


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_equal_pixels_give_equal_bytes_without_metadata(format):
    exif = PIL.Image.Exif()
    exif[0x010F] = "camera"
    config = Config(encode=encode.Config(format=format, keep_untouched=False))
    plain = process(file_of(picture(300, 300), "PNG"), config)
    tagged = process(file_of(picture(300, 300), "PNG", exif=exif, dpi=(72, 72)), config)
    assert plain == tagged
    stored = PIL.Image.open(io.BytesIO(plain.encoded))
    assert stored.format == format and (stored.width, stored.height) == (256, 256)
    assert not dict(stored.getexif())


def test_quality_has_its_effect():
    encoded = file_of(picture(300, 300), "PNG")
    sizes = [
        len(process(encoded, Config(encode=encode.Config(quality=quality))).encoded)
        for quality in (30, 60, 90)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


@pytest.mark.parametrize("size", [(1600, 1200), (1023, 2000)])
def test_shrinking_on_load_costs_no_quality(size):
    """Against a resize of all pixels: 45 dB is far above what JPEG itself loses at 90."""
    encoded = file_of(picture(*size), quality=95)
    config = Config(encode=encode.Config(format="PNG"))
    ours = PIL.Image.open(io.BytesIO(process(encoded, config).encoded))
    whole = PIL.Image.open(io.BytesIO(encoded)).resize(ours.size, PIL.Image.Resampling.LANCZOS)
    error = np.mean((np.asarray(ours, float) - np.asarray(whole, float)) ** 2)
    assert error < 255**2 / 10**4.5


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_side": 101}, "side_too_small"),
        ({"max_aspect_ratio": 1.9}, "too_elongated"),
        ({"min_area": 20_001}, "area_too_small"),
        ({"max_area": 19_999}, "area_too_large"),
        ({"min_bytes": 10**6}, "too_few_bytes"),
        ({"min_deviation": 120.0}, "near_constant"),
    ],
)
def test_filters(limits, reason):
    encoded = file_of(picture(200, 100))
    stage, bad = process(encoded, Config(filter=filter.Config(**limits)))
    assert (stage, bad.reason) == ("filter", reason)
    near = {"max_aspect_ratio": 2.0, "min_side": 100, "min_area": 20_000, "max_area": 20_000}
    assert isinstance(process(encoded, Config(filter=filter.Config(**near))), Processed)


def test_a_bad_image_tells_its_stage():
    assert process(b"", Config()) == ("decode", BadImage("empty_file", "no bytes"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resize.Config(size=0), "size: 0"),
        (lambda: encode.Config(quality=0), "quality: 0"),
        (lambda: filter.Config(min_side=-1), "min_side: -1"),
        (lambda: resize.Config(border=(1, 2)), "border"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
