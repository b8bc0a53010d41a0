"""Images that decoders or encoders have limits for: odd TIFFs, files cut off, extreme shapes."""

import io
import struct
from functools import partial

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from pipeline.batch import REJECTS, Batch, Count
from pipeline.images import encode
from pipeline.images.decode import BadImage, Config, decode
from pipeline.images.process import Config as ProcessConfig
from pipeline.images.process import Processed, process
from pipeline.images.rows import ImageRecord, image_documents
from pipeline.images.sandbox import Limits, Sandbox
from pipeline.images.stages import process_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (6, 8), np.uint16)
SHOWN = np.full((40, 40, 3), (10, 200, 30), np.uint8)
SHOWN[:, ::2] = (200, 10, 90)


def file_of(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def tiff(photometric, *, bits, content, channels=1, sample_format=1):
    """A TIFF of 8 x 6 pixels, laid out by hand as TIFF 6.0 says: Pillow would not write it."""
    fields = {256: (8,), 257: (6,), 258: channels * (bits,), 259: (1,), 262: (photometric,)}
    fields |= {273: (0,), 277: (channels,), 278: (6,), 279: (len(content),)}
    fields |= {338: (2,)} if channels == 2 else {}
    fields |= {339: channels * (sample_format,)}
    behind = 8 + 2 + 12 * len(fields) + 4
    starts = behind + sum(2 * len(one) for one in fields.values() if len(one) > 2)
    rows, longer = b"", b""
    for key, values in {**fields, 273: (starts,)}.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        place = struct.pack("<I", behind + len(longer))
        longer += packed if len(values) > 2 else b""
        rows += struct.pack("<HHI", key, 3, len(values))
        rows += place if len(values) > 2 else packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + rows + bytes(4) + longer + content


def twelve_bits(values):
    """Rows of numbers below 4096, two of them in three bytes."""
    digits = "".join(f"{value:03x}" for value in values.ravel())
    return bytes.fromhex(digits)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (tiff(1, bits=16, content=GREY.astype("<u2").tobytes()), GREY / 257),
        (tiff(0, bits=16, content=GREY.astype("<u2").tobytes()), 255 - GREY / 257),
        (tiff(0, bits=8, content=(GREY >> 8).astype(np.uint8).tobytes()), 255 - (GREY >> 8)),
        (tiff(1, bits=12, content=twelve_bits(GREY >> 4)), (GREY >> 4) / 4095 * 255),
    ],
    ids=["16 bits", "16 bits from white", "8 bits from white", "12 bits"],
)
def test_greys_of_tiff(encoded, expected):
    grey = np.rint(expected)[:, :, None]
    np.testing.assert_array_equal(decode(encoded, Config()).pixels, np.tile(grey, 3))


FLOATS = RNG.random((6, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (tiff(1, bits=32, sample_format=3, content=FLOATS[..., 0].tobytes()), "unsupported_pixels"),
        (tiff(1, bits=32, content=FLOATS[..., 0].tobytes()), "unsupported_pixels"),
        (
            tiff(2, bits=32, channels=3, sample_format=3, content=FLOATS.tobytes()),
            "unknown_format",
        ),
        (tiff(1, bits=16, channels=2, content=2 * GREY.tobytes()), "unknown_format"),
    ],
    ids=["float", "32 bits", "float RGB", "16 bits and alpha"],
)
def test_tiffs_that_are_refused(encoded, reason):
    assert decode(encoded, Config()).reason == reason


def cut(format, image=SHOWN, **options):
    """A file that has lost its second half, as accepted."""
    palette = format == "GIF"
    image = PIL.Image.fromarray(image)
    whole = file_of(image.quantize(4) if palette else image, format, **options)
    lost = decode(whole[: len(whole) // 2], Config(accept_truncated=True, background=(1, 2, 3)))
    return np.asarray(lost.pixels)


def test_what_stands_for_the_missing_part():
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    opaque = np.dstack([noise, np.full((64, 64), 255, np.uint8)])
    assert (cut("JPEG", noise)[-1] == 128).all()
    assert (cut("PNG", noise)[-1] == 0).all()
    assert (cut("PNG", opaque)[-1] == (1, 2, 3)).all()
    assert (cut("TIFF", noise)[-1] == 0).all()
    found = cut("BMP", noise)
    assert (found[0] == 0).all() and (found[-1] == noise[-1]).all()  # stored from the bottom up


def test_a_cut_gif_has_one_colour_of_its_palette_there():
    noise = PIL.Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).quantize(8)
    whole = file_of(noise, "GIF")
    colours = np.unique(decode(whole, Config()).pixels.reshape(-1, 3), axis=0).tolist()
    lost = decode(whole[: len(whole) // 2], Config(accept_truncated=True)).pixels[-1]
    assert (lost == lost[0]).all() and lost[0].tolist() in colours


def test_below_the_cut_of_a_lossy_webp_the_colours_above_go_on():
    noise = RNG.integers(0, 60, (64, 64, 3), np.uint8)
    noise[:, 32:] += 190
    found = cut("WEBP", noise)
    assert found[-1, :24].max() < 100 and found[-1, 40:].min() > 155


WIDE, HIGH = (30_000, 1), (1, 70_000)
TOO_LARGE = "too_large_for_format"


@pytest.mark.parametrize(
    ("format", "size", "detail"),
    [
        ("JPEG", WIDE, ""),
        ("JPEG", HIGH, "1 x 70000 pixels; a side of JPEG has at most 65500"),
        ("WEBP", WIDE, "30000 x 1 pixels; a side of WEBP has at most 16383"),
        ("WEBP", HIGH, "1 x 70000 pixels; a side of WEBP has at most 16383"),
        ("PNG", HIGH, ""),
    ],
)
def test_extreme_shapes_behind_the_default_resize(format, size, detail):
    """Their shorter side is below 256, so that nothing scales them."""
    config = ProcessConfig(encode=encode.Config(format=format))
    encoded = file_of(PIL.Image.new("RGB", size, "red"))
    box = Sandbox(partial(process, config=config), Limits(30, 512))
    outcome = box.map([encoded])[0]
    box.close()
    if detail:
        assert outcome == ("resize", BadImage(TOO_LARGE, detail))
        return
    assert isinstance(outcome, Processed)
    assert PIL.Image.open(io.BytesIO(outcome.encoded)).size == size
    assert (outcome.width, outcome.height) == size


def test_a_refused_size_is_counted_where_images_are_resized():
    batch = Batch(
        portion=0,
        documents=image_documents("", [ImageRecord(name, 0, name.encode()) for name in "abc"]),
        rejects=pa.RecordBatch.from_pylist([], schema=REJECTS),
        counts=(),
        last=True,
    )
    bad = ("resize", BadImage(TOO_LARGE, "detail"))
    done = process_images(batch, lambda _: [Processed(b"12", 1, 1), bad, Processed(b"345", 1, 1)])
    assert done.documents.column("image").to_pylist() == [b"12", b"345"]
    assert done.counts[-2:] == (Count("filter", 3, 3, 3, 3), Count("resize", 3, 3, 2, 5))
    (row,) = done.rejects.to_pylist()
    assert (row["stage"], row["reason"], row["source"]) == ("resize", TOO_LARGE, "b")


@pytest.mark.parametrize("format", encode.MAX_SIDE)
def test_the_limits_of_formats_are_those_of_their_encoders(format):
    config = encode.Config(format=format)
    side = min(encode.MAX_SIDE[format], 70_000)
    assert isinstance(encode.encode(np.zeros((side, 1, 3), np.uint8), config), bytes)
    if side == encode.MAX_SIDE[format]:
        with pytest.raises(ValueError, match=str(side)):
            encode.encode(np.zeros((1, side + 1, 3), np.uint8), config)
