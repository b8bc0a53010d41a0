"""A folder of odd images: every outcome stated, pixel values by an independent computation."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from pipeline.images.colours import convert
from pipeline.images.decode import BadImage, Config, decode, load, open_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), np.uint8)
OPAQUE = np.where(np.arange(8) < 4, 255, 0).astype(np.uint8) * np.ones((6, 1), np.uint8)


def file_of(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels_of(encoded, **config):
    decoded = decode(encoded, Config(**config))
    assert not isinstance(decoded, BadImage), decoded
    assert decoded.pixels.dtype == np.uint8
    return convert(decoded.pixels, decoded.conversion)


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_their_pixels(format):
    options = {"lossless": True} if format == "WEBP" else {}
    encoded = file_of(PIL.Image.fromarray(COLOUR), format, **options)
    np.testing.assert_array_equal(pixels_of(encoded), COLOUR)


def test_greyscale_one_bit_and_palette():
    np.testing.assert_array_equal(pixels_of(file_of(PIL.Image.fromarray(GREY))), grey(GREY))
    bits = GREY > 127
    np.testing.assert_array_equal(pixels_of(file_of(PIL.Image.fromarray(bits))), grey(bits * 255))
    palette = PIL.Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50, 0, 255, 0, 1, 2, 3])
    expected = np.array([[9, 8, 7], [200, 100, 50], [0, 255, 0], [1, 2, 3]])[GREY % 4]
    np.testing.assert_array_equal(pixels_of(file_of(palette)), expected)


def test_sixteen_bits_are_scaled_and_rounded():
    deep = (GREY.astype(np.uint16) << 8) + 200
    expected = np.rint(deep / 257.0)
    np.testing.assert_array_equal(pixels_of(file_of(PIL.Image.fromarray(deep))), grey(expected))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
def test_alpha_is_composed_over_the_background(background):
    behind = np.broadcast_to(background, COLOUR.shape)
    expected = np.where(OPAQUE[:, :, None] == 255, COLOUR, behind)
    rgba = PIL.Image.fromarray(np.dstack([COLOUR, OPAQUE]))
    np.testing.assert_array_equal(pixels_of(file_of(rgba), background=background), expected)
    la = PIL.Image.fromarray(np.dstack([GREY, OPAQUE]))
    expected = np.where(OPAQUE[:, :, None] == 255, grey(GREY), behind)
    np.testing.assert_array_equal(pixels_of(file_of(la), background=background), expected)


def test_half_opaque_pixels_are_mixed():
    rgba = PIL.Image.new("RGBA", (2, 2), (200, 100, 0, 128))
    expected = np.rint((np.array([200, 100, 0]) * 128 + 255 * 127) / 255)
    np.testing.assert_allclose(pixels_of(file_of(rgba)), np.tile(expected, (2, 2, 1)), atol=1)


def test_a_transparent_colour_of_a_palette():
    palette = PIL.Image.fromarray(GREY % 2).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    encoded = file_of(palette, transparency=1)
    expected = np.array([[9, 8, 7], [0, 0, 255]])[GREY % 2]
    np.testing.assert_array_equal(pixels_of(encoded, background=(0, 0, 255)), expected)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_orientation(orientation, format):
    turns = {
        2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: lambda x: np.rot90(x),
    }  # fmt: skip
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    encoded = file_of(PIL.Image.fromarray(COLOUR), format, exif=exif, **options)
    expected = turns.get(orientation, lambda x: x)(COLOUR)
    np.testing.assert_array_equal(pixels_of(encoded), expected)
    opened = open_image(encoded, Config())
    assert opened.size == expected.shape[1::-1]


def test_damaged_exif_counts_as_none():
    encoded = file_of(PIL.Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(pixels_of(encoded), COLOUR)


def test_cmyk_and_its_adobe_form():
    flat = PIL.Image.new("CMYK", (16, 16), (0, 255, 0, 51))
    decoded = pixels_of(file_of(flat, "JPEG", quality=100))  # Pillow writes the Adobe marker
    expected = np.rint((255 - np.array([0, 255, 0])) * (1 - 51 / 255))
    np.testing.assert_allclose(decoded, np.tile(expected, (16, 16, 1)), atol=3)


LINEAR = b"curv" + bytes(8)  # no entries: the identity
LEVELS = np.linspace(0, 1, 1024)
CURVE = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)
SRGB = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.rint(CURVE * 65535).astype(int))
"""As in the profile of most photos."""


def profile_of(curve, name="of a test"):
    """A profile of sRGB's primaries and a curve, as ICC.1:2010 lays it out."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(one * 65536) for one in values))

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    illuminant = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(data), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + illuminant
    return head.ljust(128, b"\0") + table + data


@pytest.mark.parametrize("name", ["of a test", "sRGB-elle-V2-g10.icc"])
def test_a_profile_is_converted_to_srgb(name):
    """Whatever it is named."""
    image = PIL.Image.fromarray(COLOUR)
    light = COLOUR / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    encoded = file_of(image, "PNG", icc_profile=profile_of(LINEAR, name))
    np.testing.assert_allclose(pixels_of(encoded), expected, atol=2)
    damaged = file_of(image, "PNG", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(pixels_of(damaged), COLOUR)


@pytest.mark.parametrize(
    "profile",
    [
        PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes(),
        profile_of(SRGB, "sRGB IEC61966-2.1"),
        profile_of(SRGB, "c2"),
    ],
)
def test_what_does_as_srgb_does_leaves_an_image_untouched(profile):
    image = PIL.Image.fromarray(COLOUR)
    png = decode(file_of(image, "PNG", icc_profile=profile), Config())
    np.testing.assert_array_equal(np.asarray(png.pixels), COLOUR)
    assert png.untouched
    assert decode(file_of(image, "JPEG", icc_profile=profile), Config()).untouched


def test_an_animation_gives_its_first_frame():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    encoded = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(encoded), np.tile([255, 0, 0], (4, 4, 1)))


def reason_of(encoded, **config):
    found = decode(encoded, Config(**config))
    assert isinstance(found, BadImage), found
    return found.reason


def test_what_is_no_image():
    assert reason_of(b"") == "empty_file"
    assert reason_of(b"<html>not found</html>") == "unknown_format"
    assert reason_of(b"\xff\xd8\xff") in ("unknown_format", "truncated_image")
    floats = PIL.Image.fromarray(GREY.astype(np.float32))
    assert reason_of(file_of(floats, "TIFF")) == "unsupported_pixels"


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncated_images_are_rejected_or_accepted(format):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    whole = file_of(PIL.Image.fromarray(noise), format)
    cut = whole[: len(whole) // 2]
    assert reason_of(cut) == "truncated_image"
    top = pixels_of(cut, accept_truncated=True)[:8]
    np.testing.assert_array_equal(top, pixels_of(whole)[:8])
    assert not decode(cut, Config(accept_truncated=True)).untouched
    assert decode(whole, Config(accept_truncated=True)).untouched
    assert reason_of(cut) == "truncated_image"  # the choice of one call is not that of the next


@pytest.mark.parametrize("options", [{}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"\xff\xd9", bytes(1000)])
def test_a_jpeg_that_breaks_off_before_an_end_marker_or_zeros(mode, end, options):
    """As half of a download; decoders fill it up with grey, and Pillow says nothing."""
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    whole = file_of(PIL.Image.fromarray(noise).convert(mode), "JPEG", **options)
    cut = whole[: int(0.6 * len(whole))] + end
    assert reason_of(cut) == "truncated_image"
    accepted = decode(cut, Config(accept_truncated=True))
    assert not accepted.untouched
    assert accepted.pixels.shape == (64, 64, 3)
    np.testing.assert_array_equal(accepted.pixels[:8], pixels_of(whole)[:8])


def test_a_jpeg_with_a_bad_code_or_without_a_restart_marker():
    noise = PIL.Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    whole = file_of(noise, "JPEG", restart_marker_rows=1)
    marker = whole.index(b"\xff\xd1")
    assert reason_of(whole[:marker] + whole[marker + 2 :]) == "damaged_image"
    place = whole.index(b"\xff\xd2") - 60
    bad = whole[:place] + b"\xfe" * 40 + whole[place + 40 :]
    assert reason_of(bad) in ("damaged_image", "truncated_image")  # by what libjpeg runs into


def test_bytes_in_front_of_the_end_marker_of_a_jpeg_do_no_harm():
    whole = file_of(PIL.Image.fromarray(COLOUR), "JPEG")
    padded = whole[:-2] + bytes(8) + whole[-2:]
    np.testing.assert_array_equal(pixels_of(padded), pixels_of(whole))
    assert decode(padded, Config()).untouched


NOISE = RNG.integers(0, 256, (64, 64, 4), np.uint8)
TOP, BOTTOM, INTERLACED = slice(0, 8), slice(-8, None), slice(0, None, 8)


@pytest.mark.parametrize(
    ("format", "mode", "options", "kept"),
    [
        ("JPEG", "L", {}, TOP),
        ("PNG", "L", {}, TOP),
        ("GIF", "RGB", {}, INTERLACED),
        ("BMP", "RGB", {}, BOTTOM),
        ("TIFF", "RGB", {}, TOP),
        ("WEBP", "RGB", {"quality": 90}, TOP),
        ("WEBP", "RGB", {"lossless": True}, TOP),
        ("WEBP", "RGBA", {"lossless": True}, TOP),
    ],
)
def test_what_is_left_of_an_image_that_breaks_off(format, mode, options, kept):
    whole = file_of(PIL.Image.fromarray(NOISE).convert(mode), format, **options)
    cut = whole[: len(whole) // 2]
    assert reason_of(cut) == "truncated_image"
    accepted = decode(cut, Config(accept_truncated=True))
    np.testing.assert_array_equal(accepted.pixels[kept], pixels_of(whole)[kept])
    assert accepted.pixels.shape == (64, 64, 3)
    assert not accepted.untouched


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_a_broken_animation_the_first_frame_is_enough(format):
    """Wherever in the second one it breaks off, be it in its palette."""
    first, second = (PIL.Image.fromarray(one).quantize(48) for one in (COLOUR, COLOUR[::-1]))
    whole = file_of(first, format, save_all=True, append_images=[second], lossless=True)
    expected = np.asarray(first.convert("RGB"))
    for size in range(len(whole) - {"GIF": 200, "WEBP": 100, "PNG": 60}[format], len(whole)):
        np.testing.assert_array_equal(pixels_of(whole[:size], accept_truncated=True), expected)


def test_metadata_that_break_off_cost_no_pixel_of_a_webp():
    exif = b"Exif\0\0II*\0\x08\0\0\0" + bytes(1000)
    whole = file_of(PIL.Image.fromarray(COLOUR), "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(pixels_of(whole[:-500], accept_truncated=True), COLOUR)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_compressed_tiff_that_breaks_off_stays_a_reject(compression, share):
    """Its directory lies behind its pixels, or before them; libtiff gives no part of a strip."""
    behind = file_of(PIL.Image.fromarray(NOISE[..., :3]), "TIFF", compression=compression)
    before = directory_first(behind)
    np.testing.assert_array_equal(pixels_of(before), NOISE[..., :3])
    for whole in (behind, before):
        cut = whole[: int(share * len(whole))]
        assert reason_of(cut) == reason_of(cut, accept_truncated=True) == "truncated_image"


def directory_first(tiff):
    """A TIFF of one strip with its directory, of 16 and 32 bits, moved from its end before it."""
    (place,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, place)
    moved = len(tiff) - place  # what the directory refers to lies behind it
    entries = b""
    for number in range(count):
        tag, kind, values, found = struct.unpack_from("<HHII", tiff, place + 2 + 12 * number)
        if tag == 273:
            found += moved
        elif values * {3: 2, 4: 4, 5: 8}[kind] > 4:
            found -= place - 8
        entries += struct.pack("<HHII", tag, kind, values, found)
    behind = tiff[place + 2 + 12 * count :]
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + entries + behind + tiff[8:place]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_an_image_that_breaks_off_before_its_pixels_stays_a_reject(format):
    whole = file_of(PIL.Image.fromarray(NOISE[..., :3]), format)
    assert isinstance(decode(whole[:22], Config(accept_truncated=True)), BadImage)


def test_a_cut_webp_is_told_from_a_damaged_one():
    whole = file_of(PIL.Image.fromarray(COLOUR), "WEBP", lossless=True)
    assert reason_of(whole[:-3]) == "truncated_image"
    assert reason_of(whole[:20] + bytes(len(whole) - 20)) == "damaged_image"


def test_a_png_of_which_only_the_end_mark_is_lost_is_written_anew():
    whole = file_of(PIL.Image.fromarray(COLOUR))
    assert decode(whole, Config()).untouched
    for lost in (1, 4, 12):
        decoded = decode(whole[:-lost], Config())
        np.testing.assert_array_equal(np.asarray(decoded.pixels), COLOUR)
        assert not decoded.untouched


def test_wrong_pixels_of_a_png_are_found_by_their_checksum():
    encoded = bytearray(file_of(PIL.Image.fromarray(COLOUR), compress_level=0))
    place = encoded.index(b"IDAT") + 30
    encoded[place] ^= 1
    found = decode(bytes(encoded), Config())
    assert found == BadImage("damaged_image", "wrong checksum of the pixels at byte 41")


def test_sixteen_bits_of_colour_keep_the_high_byte_and_are_written_anew():
    deep = RNG.integers(0, 65536, (6, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    encoded = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )  # fmt: skip
    decoded = decode(encoded, Config())
    np.testing.assert_array_equal(np.asarray(decoded.pixels), deep >> 8)
    assert not decoded.untouched


def test_a_bomb_is_refused_by_its_header():
    encoded = file_of(PIL.Image.new("1", (30_000, 30_000)))
    assert len(encoded) < 200_000
    found = decode(encoded, Config())
    assert found == BadImage(
        "too_many_pixels", "30000 x 30000 pixels; images.decode.max_pixels=100000000"
    )


def test_extreme_shapes():
    assert pixels_of(file_of(PIL.Image.new("RGB", (1, 1), "red"))).shape == (1, 1, 3)
    assert pixels_of(file_of(PIL.Image.new("RGB", (30_000, 1)))).shape == (1, 30_000, 3)


def test_a_jpeg_is_shrunk_on_load_to_twice_the_wished_side_at_least():
    encoded = file_of(PIL.Image.new("RGB", (1600, 1200)), "JPEG")
    for wished, expected in ((0, (1600, 1200)), (300, (800, 600)), (301, (1600, 1200))):
        decoded = load(open_image(encoded, Config()), Config(), wished_side=wished)
        assert decoded.pixels.shape[1::-1] == expected
        assert decoded.untouched is (expected == (1600, 1200))
