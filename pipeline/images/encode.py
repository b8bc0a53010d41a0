"""Encoding: JPEG, WebP or PNG without metadata; equal pixels give equal bytes."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image

from pipeline.images import jpeg
from pipeline.images.decode import BadImage

EXTENSIONS = {"JPEG": "jpg", "WEBP": "webp", "PNG": "png"}
"""Of the member of a sample, by format."""
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "PNG": 2**31 - 1}
"""Pixels, by format: what libjpeg and libwebp encode, and PNG can say."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How images are stored in the dataset."""

    format: Literal["JPEG", "WEBP", "PNG"] = "JPEG"
    """One for the whole dataset: all samples have the same members."""
    quality: int = 90
    """Of JPEG and WebP, 1 to 100; PNG is lossless and takes no notice of it."""
    keep_untouched: bool = True
    """Keep the bytes of an image of this format whose pixels do not change, its metadata too."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality: {self.quality}; 1 to 100 are allowed")


def check_side(width: int, height: int, config: Config) -> BadImage | None:
    """Whether the format holds an image of this size."""
    most = MAX_SIDE[config.format]
    if max(width, height) <= most:
        return None
    found = f"{width} x {height} pixels"
    return BadImage(
        "too_large_for_format", f"{found}; a side of {config.format} has at most {most}"
    )


def encode(pixels: npt.NDArray[np.uint8], config: Config) -> bytes:
    """Encode pixels (height, width, 3), whose size `check_side` allows."""
    pixels = np.ascontiguousarray(pixels)
    if config.format == "JPEG":
        return jpeg.encode(pixels, quality=config.quality)
    options: dict[str, Any] = {"quality": config.quality}
    if config.format == "PNG":
        options = {"compress_level": 6}
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, config.format, **options)
    return file.getvalue()
