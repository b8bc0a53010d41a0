"""Images as people keep them against what the pipeline makes of them when it builds a dataset."""

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from pipeline.images.colours import convert
from pipeline.images.decode import Config, decode
from training.augment.recipe import Recipe, render
from training.augment.upright import MAX_PIXELS, open_upright

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
TRANSPARENT = RNG.integers(0, 256, (6, 8, 4), np.uint8)
SRGB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
LAB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("LAB")).tobytes()


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return file_of(PIL.Image.fromarray(COLOUR), exif=exif.tobytes())


def palette(**options):
    image = PIL.Image.fromarray(GREY % 4).convert("P")
    image.putpalette([9, 8, 7, 200, 100, 50, 0, 255, 0, 1, 2, 3])
    return file_of(image, **options)


def exchanged():
    """A profile whose red and green are exchanged, so that a conversion shows."""
    profile = bytearray(SRGB)
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def of_grey():
    """A profile of greys in linear light, as ICC.1:2010 lays it out."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, b"kTRC": b"curv" + bytes(8)}
    start, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content
    parts = (start + len(data), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head = struct.pack(">I4sI4s4s4s", *parts) + bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + table + data


def tiff(bits, photometric, content):
    """Greys of 8 x 6 as Pillow would not write them."""
    fields = {256: 8, 257: 6, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 6}
    fields[279] = len(content)
    rows = b"".join(struct.pack("<HHII", key, 4, 1, value) for key, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + rows + bytes(4) + content


def animation():
    frames = [PIL.Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(3)]
    return file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD = {
    **{f"orientation {n}": turned(n) for n in range(1, 9)},
    "grey": file_of(PIL.Image.fromarray(GREY)),
    "1 bit": file_of(PIL.Image.fromarray(GREY > 127)),
    "palette": palette(),
    "palette, one of it transparent": palette(transparency=2),
    "palette and profile": palette(icc_profile=exchanged()),
    "palette, transparency and profile": palette(transparency=2, icc_profile=exchanged()),
    "profile": file_of(PIL.Image.fromarray(COLOUR), icc_profile=exchanged()),
    "profile of sRGB": file_of(PIL.Image.fromarray(COLOUR), icc_profile=SRGB),
    "alpha and profile": file_of(PIL.Image.fromarray(TRANSPARENT), icc_profile=exchanged()),
    "grey and profile": file_of(PIL.Image.fromarray(GREY), icc_profile=of_grey()),
    "grey, alpha and profile": file_of(
        PIL.Image.fromarray(TRANSPARENT).convert("LA"), icc_profile=of_grey()
    ),
    "16 bits and profile": file_of(
        PIL.Image.fromarray(GREY.astype(np.uint16) << 8), icc_profile=of_grey()
    ),
    "profile in a JPEG": file_of(
        PIL.Image.fromarray(COLOUR), "JPEG", icc_profile=exchanged(), quality=100
    ),
    "16 bits from white": tiff(16, 0, GREY.astype("<u2").tobytes()),
    "12 bits": tiff(12, 1, bytes(RNG.integers(0, 256, 72, np.uint8))),
    "16 bits": file_of(PIL.Image.fromarray((GREY.astype(np.uint16) << 8) + 200)),
    "alpha": file_of(PIL.Image.fromarray(TRANSPARENT)),
    "grey and alpha": file_of(PIL.Image.fromarray(TRANSPARENT).convert("LA")),
    "cmyk": file_of(PIL.Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "profile of other pixels": file_of(PIL.Image.fromarray(COLOUR), icc_profile=LAB),
    "damaged profile": file_of(PIL.Image.fromarray(COLOUR), icc_profile=b"nothing"),
    "animation": animation(),
    "tiff": file_of(PIL.Image.fromarray(COLOUR), "TIFF"),
    "bmp": file_of(PIL.Image.fromarray(COLOUR), "BMP"),
    "webp": file_of(PIL.Image.fromarray(COLOUR), "WEBP"),
    "1 x 1": file_of(PIL.Image.fromarray(COLOUR[:1, :1])),
}


@pytest.mark.parametrize("name", ODD)
def test_pixels_are_those_of_the_pipeline(name):
    found = open_upright(ODD[name])
    expected = decode(ODD[name], Config())
    assert found.mode == "RGB"
    expected = convert(np.asarray(expected.pixels), expected.conversion)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_colours_of_a_wide_profile_come_into_srgb():
    encoded = file_of(PIL.Image.fromarray(COLOUR), icc_profile=exchanged())
    found = np.asarray(open_upright(encoded), np.int64)
    assert np.abs(found - COLOUR[..., [1, 0, 2]]).max() <= 2


def test_colours_of_a_palette_and_greys_beside_an_alpha_come_into_srgb():
    found = np.asarray(open_upright(palette(icc_profile=exchanged())), np.int64)
    colours = np.array([[8, 9, 7], [100, 200, 50], [255, 0, 0], [2, 1, 3]])
    assert np.abs(found - colours[GREY % 4]).max() <= 2
    opaque = PIL.Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]))
    found = np.asarray(open_upright(file_of(opaque, icc_profile=of_grey())), np.int64)
    light = GREY / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    bright = GREY > 40  # darker ones lcms rounds by up to 9, as its curve has few points there
    assert np.abs(found - 255 * expected[:, :, None])[bright].max() <= 2


@pytest.mark.parametrize(
    ("encoded", "part"),
    [
        (b"", "no bytes"),
        (b"no image", "cannot identify"),
        (file_of(PIL.Image.fromarray(COLOUR))[:-30], "truncated"),
        (file_of(PIL.Image.fromarray(GREY.astype(np.float32)), "TIFF"), "mode F: 32 bits"),
    ],
)
def test_bad_images_are_told(encoded, part):
    with pytest.raises(Exception, match=part):
        open_upright(encoded)


def test_a_bomb_is_refused_by_its_header():
    side = int(MAX_PIXELS**0.5) + 1
    bomb = file_of(PIL.Image.new("1", (side, side)))
    assert len(bomb) < 50_000
    with pytest.raises(ValueError, match="10001 x 10001 pixels; max_pixels=100000000"):
        open_upright(bomb)
    assert open_upright(bomb, max_pixels=side**2).size == (side, side)


def test_a_recipe_takes_them_where_it_is_told_to():
    """Cut and resized as if the pipeline had prepared them before."""
    large = PIL.Image.fromarray(COLOUR).resize((80, 60))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    encoded = file_of(large, exif=exif.tobytes())
    prepared = file_of(large.transpose(PIL.Image.Transpose.ROTATE_270))
    found = render(encoded, Recipe(size=16, of_dataset=False), key=0)
    assert np.array_equal(found, render(prepared, Recipe(size=16), key=0))
    assert not np.array_equal(found, render(encoded, Recipe(size=16), key=0))
