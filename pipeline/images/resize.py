"""Resizing: sizes by stated rules, antialiased by Pillow's convolution with a Lanczos kernel."""

from dataclasses import dataclass
from typing import Literal

import PIL.Image


@dataclass(frozen=True, kw_only=True)
class Config:
    """What becomes of an image's size."""

    mode: Literal["none", "shorter_side", "longer_side", "center_crop", "pad"] = "shorter_side"
    """`shorter_side` or `longer_side` is made `size`; `center_crop` and `pad` give a square of
    `size`, cut or with a border; `none` keeps every size."""
    size: int = 256
    """Pixels."""
    enlarge: bool = False
    """Enlarge smaller images too; else `center_crop` cuts them to the square of their shorter side,
    `pad` puts them into a square of `size`, and the other modes keep them."""
    border: tuple[int, ...] = (255, 255, 255)
    """Red, green and blue, 0 to 255, of the border of `pad`."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: {self.size}; at least 1 pixel is allowed")
        if len(self.border) != 3 or not all(0 <= one <= 255 for one in self.border):
            raise ValueError(f"border: {self.border}; three numbers from 0 to 255")


def scaled_size(width: int, height: int, config: Config) -> tuple[int, int]:
    """The size to which an image is scaled, before it is cut or padded; no side is ever 0.

    500 x 375, shorter_side 256 -> 341 x 256.
    """
    if config.mode == "none":
        return width, height
    by_shorter = config.mode in ("shorter_side", "center_crop")
    side = min(width, height) if by_shorter else max(width, height)
    if side <= config.size and not config.enlarge:
        return width, height
    scale = config.size / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def shorter_side(width: int, height: int, config: Config) -> int:
    """The shorter side behind scaling, by which a decoder may shrink; 0: it may not."""
    wished = min(scaled_size(width, height, config))
    return wished if wished < min(width, height) else 0


def resize(image: PIL.Image.Image, size: tuple[int, int], config: Config) -> PIL.Image.Image:
    """Scale an image to `size`, which `scaled_size` gave, then cut or pad it."""
    if image.size != size:
        image = image.resize(size, PIL.Image.Resampling.LANCZOS)
    if config.mode == "center_crop" and image.width != image.height:
        return _crop(image, min(config.size, *image.size))
    if config.mode == "pad" and image.size != (config.size, config.size):
        return _pad(image, config.size, config.border)
    return image


def _pad(image: PIL.Image.Image, side: int, border: tuple[int, ...]) -> PIL.Image.Image:
    square = PIL.Image.new("RGB", (side, side), border)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _crop(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
