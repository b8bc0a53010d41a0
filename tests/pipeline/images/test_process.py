import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageCms
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
    pixels = resize.scale(
        np.zeros((height, width, 3), np.uint8), resize.scaled_size(width, height, chosen)
    )
    return resize.fit(pixels, chosen).shape[1::-1]


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
    padded = resize.fit(np.full((2, 4, 3), (255, 0, 0), np.uint8), config)
    expected = np.tile(np.array([1, 2, 3]), (6, 6, 1))
    expected[2:4, 1:5] = [255, 0, 0]
    np.testing.assert_array_equal(padded, expected)


def test_scaling_is_that_of_float64():
    """Lanczos by its formula, as wide as the new pixels; 8 bits between the passes cost little."""

    def weights(old, new):
        x = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new) * new / old
        kernel = np.sinc(x) * np.sinc(x / 3) * (abs(x) < 3)
        return kernel / kernel.sum(1, keepdims=True)

    pixels = np.asarray(picture(300, 200))
    expected = np.einsum("yY,xX,YXc->yxc", weights(200, 128), weights(300, 192), pixels)
    error = np.mean((resize.scale(pixels, (192, 128)) - np.clip(expected, 0, 255)) ** 2)
    assert error < 255**2 / 10**5.0
    views = pixels[::-1, ::-1].swapaxes(0, 1)  # as a turned image is held
    np.testing.assert_array_equal(
        resize.scale(views, (128, 192)), resize.scale(views.copy(), (128, 192))
    )


def test_colours_are_converted_behind_the_resize():
    """The profile of a JPEG, turned and shrunk; against all pixels converted by Pillow."""
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    other = profile.replace("sRGB".encode("utf-16-be"), "abcd".encode("utf-16-be"))
    other = other.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    encoded = file_of(picture(1200, 1100), quality=95, icc_profile=other, exif=exif)
    found = process(encoded, Config(encode=encode.Config(format="PNG")))
    whole = picture(1200, 1100).rotate(-90, expand=True).resize((256, 279))
    expected = np.asarray(whole, float)[..., [1, 0, 2]]  # red and green change places
    error = np.asarray(PIL.Image.open(io.BytesIO(found.encoded)), float) - expected
    assert np.mean(error**2) < 255**2 / 10**3.5


def test_untouched_images_keep_their_bytes():
    encoded = file_of(picture(200, 100), quality=77)
    assert process(encoded, Config()) == Processed(encoded, 200, 100)
    png = file_of(picture(200, 100), "PNG")
    assert process(png, Config()).encoded != png
    asked = Config(encode=encode.Config(keep_untouched=False))
    assert process(encoded, asked).encoded != encoded


def grey_profile():
    """Linear light, as ICC.1:2010 lays it out."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = {b"wtpt": white, b"kTRC": b"curv" + bytes(8)}
    start = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    for number, (tag, content) in enumerate(tags.items()):
        table += struct.pack(">4sII", tag, start + 20 * number, len(content))
    head = struct.pack(">I4sI4s4s4s", start + 32, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + table + b"".join(tags.values())


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_grey_of_8_bits_keeps_its_bytes_where_no_pixel_changes(format):
    grey, config = picture(200, 100).convert("L"), Config(encode=encode.Config(format=format))
    encoded = file_of(grey, format)
    assert process(encoded, config) == Processed(encoded, 200, 100)
    other = {"JPEG": "PNG", "PNG": "JPEG"}[format]
    upside_down = PIL.Image.Exif()
    upside_down[0x0112] = 3
    for image in (
        file_of(grey, format, exif=upside_down),
        file_of(grey.resize((600, 300)), format),
        file_of(grey, format, icc_profile=grey_profile()),
        file_of(grey, other),
    ):
        written = PIL.Image.open(io.BytesIO(process(image, config).encoded))
        assert (written.format, written.mode) == (format, "RGB")


@pytest.mark.parametrize("kind", ["transparent", "1 bit", "16 bits", "beside alpha"])
def test_other_greys_of_png_are_written_anew(kind):
    grey = picture(200, 100).convert("L")
    deep = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    encoded = {
        "transparent": file_of(grey, "PNG", transparency=7),
        "1 bit": file_of(grey.convert("1"), "PNG"),
        "16 bits": file_of(deep, "PNG"),
        "beside alpha": file_of(grey.convert("LA"), "PNG"),
    }[kind]
    found = process(encoded, Config(encode=encode.Config(format="PNG")))
    assert PIL.Image.open(io.BytesIO(found.encoded)).mode == "RGB"


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
