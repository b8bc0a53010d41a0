"""A folder of odd images: what becomes of each, through the whole build and its sandbox."""

import gzip
import io
import json
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.verify import verify

QUADRANTS = np.zeros((32, 48, 3), np.uint8)
QUADRANTS[:16, :24], QUADRANTS[:16, 24:], QUADRANTS[16:, :24] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
)
PICTURE = PIL.Image.fromarray(QUADRANTS)
TURNED = {
    1: QUADRANTS, 2: QUADRANTS[:, ::-1], 3: QUADRANTS[::-1, ::-1], 4: QUADRANTS[::-1],
    5: QUADRANTS.transpose(1, 0, 2), 6: np.rot90(QUADRANTS, -1),
    7: np.rot90(QUADRANTS, 2).transpose(1, 0, 2), 8: np.rot90(QUADRANTS),
}  # fmt: skip
FULL = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


def file_of(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **FULL.get(format, {}), **options)
    return file.getvalue()


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def turned(format, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return file_of(PICTURE, format, exif=exif)


def png(width, height, rows, *, text=b""):
    """A PNG of one bit a pixel, by hand: rows that Pillow would not write, and a text beside."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    if text:
        body.insert(1, (b"zTXt", b"text\0\0" + zlib.compress(text, 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def modes():
    """Each mode in a format that holds it, with the pixels that it becomes."""
    lightness = np.asarray(PICTURE.convert("L"))
    opaque = PICTURE.convert("RGBA")
    opaque.putalpha(PIL.Image.fromarray(np.where(lightness > 0, 255, 0).astype(np.uint8)))
    over_white = np.where(lightness[:, :, None] > 0, QUADRANTS, 255)
    return {
        "1.png": (file_of(PICTURE.convert("L").point(lambda v: 255 * (v > 50), "1")),
                  grey(255 * (lightness > 50))),
        "L.jpg": (file_of(PICTURE.convert("L"), "JPEG"), grey(lightness)),
        "LA.png": (file_of(opaque.convert("LA")), np.where(lightness[:, :, None] > 0,
                   grey(lightness), 255)),
        "P.gif": (file_of(PICTURE, "GIF"), QUADRANTS),
        "RGB.bmp": (file_of(PICTURE, "BMP"), QUADRANTS),
        "RGBA.webp": (file_of(opaque, "WEBP"), over_white),
        "CMYK.tif": (file_of(PICTURE.convert("CMYK"), "TIFF"), QUADRANTS),
        "CMYK.jpg": (file_of(PICTURE.convert("CMYK"), "JPEG"), QUADRANTS),
        "YCbCr.jpg": (file_of(PICTURE.convert("YCbCr"), "JPEG"), QUADRANTS),
        "LAB.tif": (file_of(PICTURE.convert("LAB"), "TIFF"), QUADRANTS),
        "I;16.png": (file_of(PIL.Image.fromarray(lightness.astype(np.uint16) * 257)),
                     grey(lightness)),
    }  # fmt: skip


def animations():
    """The first frame is the picture, the others are not."""
    others = [PIL.Image.new("RGB", PICTURE.size, colour) for colour in ("white", "black")]
    names = {"moving.gif": "GIF", "moving.webp": "WEBP", "moving.png": "PNG", "pages.tif": "TIFF"}
    return {
        name: (file_of(PICTURE, format, save_all=True, append_images=others), QUADRANTS)
        for name, format in names.items()
    }


def accepted():
    """Content and pixels of what becomes a sample."""
    turns = {
        f"turned-{orientation}.{format.lower()}": (turned(format, orientation), pixels)
        for format in ("JPEG", "PNG", "WEBP", "TIFF")
        for orientation, pixels in TURNED.items()
    }
    others = {
        "a png named.jpg": (file_of(PICTURE), QUADRANTS),
        "one.png": (file_of(PIL.Image.new("RGB", (1, 1), "red")), [[[255, 0, 0]]]),
        "wide.png": (file_of(PIL.Image.new("RGB", (30_000, 1), "lime")), [[[0, 255, 0]] * 30_000]),
        "high.png": (file_of(PIL.Image.new("RGB", (1, 30_000), "blue")), [[[0, 0, 255]]] * 30_000),
        "without end.png": (file_of(PICTURE)[:-12], QUADRANTS),
    }
    return {**modes(), **animations(), **turns, **others}


def refused():
    """Content and reason of what does not."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    cut = {
        f"cut.{format.lower()}": (file_of(noise, format)[:5000], "truncated_image")
        for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    }
    floats = PIL.Image.fromarray(np.asarray(PICTURE.convert("L"), np.float32))
    return {
        **cut,
        "empty.jpg": (b"", "empty_file"),
        "page.jpg": (b"<html>not found</html>", "unknown_format"),
        "icon.png": (file_of(PICTURE, "ICO"), "unknown_format"),
        "new.jpg": (file_of(PICTURE, "JPEG2000"), "unknown_format"),
        "damaged.png": (b"".join([file_of(noise)[:3000], bytes(50), file_of(noise)[3050:]]),
                        "damaged_image"),
        "F.tif": (file_of(floats, "TIFF"), "unsupported_pixels"),
        "I.tif": (file_of(floats.convert("I"), "TIFF"), "unsupported_pixels"),
        "bomb.png": (png(30_000, 30_000, bytes(3751 * 30_000)), "too_many_pixels"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0,"
                     + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\2\2D\1\0;",
                     "too_many_pixels"),
        "bomb text.png": (png(8, 1, b"\0\0", text=bytes(50 << 20)), "damaged_image"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, (content, _) in {**accepted(), **refused()}.items():
        (folder / name).write_bytes(content)
    asked = [
        f"dataset_dir={folder.with_name('dataset')}",
        "corpus.format=image_folder",
        f"corpus.path=[{folder}]",
        "corpus.keep_name=true",
        "images.resize.mode=none",
        "images.encode.format=PNG",
        "deduplicate=false",
        "split.fraction=0",
        "max_bad_fraction=1",
    ]
    return build(load(PipelineConfig, None, asked))


def test_what_becomes_a_sample(built):
    expected = {name: np.asarray(pixels, float) for name, (_, pixels) in accepted().items()}
    urls = sorted(map(str, built.glob("*.tar")))
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        name = json.loads(sample["json"])["file"]
        image = PIL.Image.open(io.BytesIO(sample["png"]))
        assert (image.mode, image.n_frames, image.getexif().get(0x0112, 1)) == ("RGB", 1, 1)
        assert sample["png"].endswith(b"IEND\xaeB`\x82")
        found[name] = np.asarray(image, float)
    assert found.keys() == expected.keys()
    for name, pixels in expected.items():
        assert found[name].shape == pixels.shape, name
        off = np.abs(found[name] - pixels).mean()
        allowed = {"jpg": 4, "jpeg": 4, "LAB.tif": 8}  # LAB of 8 bits is coarse
        assert off <= allowed.get(name, allowed.get(name.split(".")[1], 0)), (name, off)
    assert verify(built) == []


def test_what_is_refused(built):
    found = {}
    for path in (built / "rejects").glob("*.jsonl.gz"):
        with gzip.open(path) as file:
            found |= {row["source"]: row["reason"] for row in map(json.loads, file)}
    assert found == {name: reason for name, (_, reason) in refused().items()}
