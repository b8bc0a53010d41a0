"""Images as people keep them against what the pipeline makes of them when it builds a dataset."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from pipeline.images.decode import Config, decode
from training.augment.recipe import Recipe, render
from training.augment.upright import MAX_PIXELS, open_upright

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
TRANSPARENT = RNG.integers(0, 256, (6, 8, 4), np.uint8)
LAB = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("LAB")).tobytes()


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return file_of(PIL.Image.fromarray(COLOUR), exif=exif.tobytes())


def palette():
    image = PIL.Image.fromarray(GREY % 4).convert("P")
    image.putpalette([9, 8, 7, 200, 100, 50, 0, 255, 0, 1, 2, 3])
    return file_of(image, transparency=2)


def animation():
    frames = [PIL.Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)) for _ in range(3)]
    return file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD = {
    **{f"orientation {n}": turned(n) for n in range(1, 9)},
    "grey": file_of(PIL.Image.fromarray(GREY)),
    "1 bit": file_of(PIL.Image.fromarray(GREY > 127)),
    "palette": palette(),
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
    expected = decode(ODD[name], Config()).pixels
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found, np.int64) - np.asarray(expected, np.int64))
    assert difference.max() <= 1  # composing over white rounds one way or the other


def test_colours_of_a_wide_profile_come_into_srgb():
    """A profile whose red and green are exchanged, so that a conversion shows."""
    profile = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    profile = bytes(profile).replace("sRGB".encode("utf-16-be"), "abcd".encode("utf-16-be"))
    encoded = file_of(PIL.Image.fromarray(COLOUR), icc_profile=profile)
    found = np.asarray(open_upright(encoded), np.int64)
    assert np.abs(found - COLOUR[..., [1, 0, 2]]).max() <= 2


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
    with pytest.raises(ValueError, match="10001 x 10001 pixels, above 100,000,000"):
        open_upright(bomb)


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
