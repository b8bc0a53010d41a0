"""Images as people keep them, upright and in sRGB: what the pipeline does when it builds a dataset.

The same rules as in `pipeline/images/decode.py` and `colours.py` there, which this half does not
import: orientation of EXIF, colour profiles, 16 bits, transparency over white, the first frame of
an animation. `tests/training/augment/test_upright.py` compares the pixels of both.
"""

import io
from functools import lru_cache

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""That are opened, by content, whatever the name says."""
MAX_PIXELS = 100_000_000
"""Of one image, a guard against decompression bombs; the default of the pipeline, too."""

Transform = PIL.ImageCms.ImageCmsTransform

_STEPS = np.arange(0, 256, 51)
_GREYS = np.repeat(np.arange(256)[:, None], 3, axis=1)
_GRID = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(-1, 3)
_RAMP = np.concatenate([_GREYS, _GRID]).astype(np.uint8)[None]
"""Pixels (1, 472, 3): a profile that moves none of them by more than 1 is taken for sRGB."""


def open_upright(encoded: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Decode any image to RGB, of at most so many pixels by its header.

    Raises:
        Exception: whatever decoders raise for damaged bytes, and for pixels of unknown range.
    """
    PIL.Image.MAX_IMAGE_PIXELS = None  # ours is the limit, and told in one line
    if not encoded:
        raise ValueError("no bytes")
    image: PIL.Image.Image = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels; max_pixels={max_pixels}")
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}: 32 bits of unknown range")
    profile = image.info.get("icc_profile")
    turned = _turned(image)
    if image.mode.startswith("I;16"):
        turned = _in_8_bits(turned, getattr(image, "tag_v2", {}))
    return _over_white(_in_srgb(turned, profile), _alpha(turned))


def _turned(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF counts as none
        return image


def _in_8_bits(image: PIL.Image.Image, tags: dict[int, object]) -> PIL.Image.Image:
    """Of 12 or 16 bits, which a TIFF may count from white; Pillow gives them as stored."""
    bits, photometric = tags.get(258), tags.get(262)
    largest = 4095 if bits == (12,) else 65535
    values = np.asarray(image).astype(np.uint32)
    scaled = ((values * 255 + largest // 2) // largest).astype(np.uint8)
    return PIL.Image.fromarray(255 - scaled if photometric == 0 else scaled)


def _alpha(image: PIL.Image.Image) -> PIL.Image.Image | None:
    """The opacity of each pixel, or None where all are opaque by their format."""
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _in_srgb(image: PIL.Image.Image, profile: bytes | None) -> PIL.Image.Image:
    """RGB without alpha; a palette's colours, and greys beside an alpha, have a profile, too."""
    if image.mode in ("1", "P", "PA", "LA", "RGBA", "RGBa", "La"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    transform = _to_srgb(profile, image.mode) if profile else None
    image = image if transform is None else transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Transform | None:
    """None for a profile of another colour space than the pixels, a damaged one, and sRGB."""
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
        transform = PIL.ImageCms.ImageCmsTransform(source, target, mode, "RGB")
    except (PIL.ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode != "RGB":
        return transform
    moved = np.asarray(transform.apply(PIL.Image.fromarray(_RAMP)), np.int16)
    return None if np.abs(moved - _RAMP).max() <= 1 else transform


def _over_white(image: PIL.Image.Image, alpha: PIL.Image.Image | None) -> PIL.Image.Image:
    if alpha is None:
        return image
    under = PIL.Image.new("RGB", image.size, "white")
    under.paste(image, mask=alpha)
    return under
