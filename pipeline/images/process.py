"""One image from its stored bytes to those of the dataset: decode, filter, resize, encode."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.images.appearance import appearance
from pipeline.images.colours import convert
from pipeline.images.decode import BadImage, load, open_image
from pipeline.images.decode import Config as DecodeConfig
from pipeline.images.encode import Config as EncodeConfig
from pipeline.images.encode import check_side, encode
from pipeline.images.filter import Config as FilterConfig
from pipeline.images.filter import check_content, check_size
from pipeline.images.resize import Config as ResizeConfig
from pipeline.images.resize import fit, scale, scaled_size, shorter_side


@dataclass(frozen=True, kw_only=True)
class Config:
    """What becomes of each image."""

    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """How images are decoded."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which images are good enough."""
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    """What becomes of their size."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """How they are stored."""


@dataclass(frozen=True, slots=True)
class Processed:
    """An image of the dataset."""

    encoded: bytes
    """The file."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    appearance: bytes = b""
    """Packed, where it was asked for."""


Outcome = Processed | tuple[str, BadImage]
"""What becomes of an image; of a bad one the stage that refuses it, and why."""


def process(encoded: bytes, config: Config, *, look: bool = False) -> Outcome:
    """Process one image.

    Args:
        encoded: as the corpus holds it.
        config: what becomes of it.
        look: note its appearance, from the pixels that are decoded anyway.

    Raises:
        MemoryError: the memory of this process does not suffice for it.
    """
    opened = open_image(encoded, config.decode)
    if isinstance(opened, BadImage):
        return "decode", opened
    size = opened.size
    if bad := check_size(len(encoded), *size, config.filter):
        return "filter", bad
    wished = shorter_side(*size, config.resize)
    decoded = load(opened, config.decode, wished_side=wished)
    del opened  # and with it what Pillow has decoded
    if isinstance(decoded, BadImage):
        return "decode", decoded
    scaled = convert(scale(decoded.pixels, scaled_size(*size, config.resize)), decoded.conversion)
    if bad := check_content(scaled, config.filter):
        return "filter", bad
    seen = appearance(scaled, size).pack() if look else b""
    result = fit(scaled, config.resize)
    untouched = decoded.untouched and result is decoded.pixels
    if untouched and config.encode.keep_untouched and decoded.format == config.encode.format:
        return Processed(encoded, *size, seen)
    return _encoded(result, config.encode, seen)


def _encoded(pixels: npt.NDArray[np.uint8], config: EncodeConfig, seen: bytes) -> Outcome:
    height, width = pixels.shape[:2]
    if bad := check_side(width, height, config):
        return "resize", bad
    return Processed(encode(pixels, config), width, height, seen)
