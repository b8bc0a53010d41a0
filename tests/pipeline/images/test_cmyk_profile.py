"""CMYK by its own profile: what inks look like is told by a table in it, and not by a formula."""

import io
import itertools
import struct

import numpy as np
import PIL.Image
import pytest

from pipeline.images.decode import Config, decode

D50 = np.array([0.9642, 1.0, 0.8249])
TO_SRGB = np.array([
    [3.1338561, -1.6168667, -0.4906146],
    [-0.9787684, 1.9161415, 0.0334540],
    [0.0719453, -0.2289914, 1.4052427],
])  # fmt: skip
"""From XYZ under D50 to linear sRGB, by Bradford's adaptation (brucelindbloom.com)."""


def lab_of(c, m, y, k):
    """The colour of inks, 0 to 1, on this imaginary press; linear in each of them."""
    light = 100 * (1 - k) * (1 - (c + m + y) / 3)
    return np.array([light, 40 * (m - c) * (1 - k), 40 * (y - c) * (1 - k)])


def press_profile():
    """Its profile: a `lut8Type` of two points for each ink, as ICC.1:2010 lays it out."""
    points = [lab_of(*inks) for inks in itertools.product((0, 1), repeat=4)]
    corners = b"".join(
        bytes([round(L * 2.55), round(a) + 128, round(b) + 128]) for L, a, b in points
    )
    unit = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + 4 * straight + corners + 3 * straight
    white = struct.pack(">3i", *(round(one * 65536) for one in D50))
    tags = {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + white}
    start, entries, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        entries += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(data), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab "
    )
    return (head + bytes(12) + b"acsp" + bytes(28) + white).ljust(128, b"\0") + entries + data


def srgb_of(lab):
    """CIE's formulas."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)
    light = np.clip(TO_SRGB @ xyz, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (0, 0, 0, 128), (0, 128, 0, 0), (60, 0, 90, 0)])
def test_inks_look_as_the_profile_says(format, inks):
    file = io.BytesIO()
    options = {"quality": 100} if format == "JPEG" else {}
    image = PIL.Image.new("CMYK", (16, 16), inks)
    image.save(file, format, icc_profile=press_profile(), **options)
    found = np.asarray(decode(file.getvalue(), Config()).pixels)
    expected = srgb_of(lab_of(*(ink / 255 for ink in inks)))
    np.testing.assert_allclose(found, np.tile(expected, (16, 16, 1)), atol=3)
