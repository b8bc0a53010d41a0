"""Colours by ICC profiles -> sRGB, with perceptual intent."""

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageCms

Pixels = npt.NDArray[np.uint8]
Transform = PIL.ImageCms.ImageCmsTransform

_TOLERANCE = 1
"""A profile that moves no channel of `_RAMP` by more is taken for sRGB: what lies below is the
rounding of its tables, and converting it would write every such photo anew."""

_STEPS = np.arange(0, 256, 51)
_GREYS = np.repeat(np.arange(256)[:, None], 3, axis=1)
_GRID = np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(-1, 3)
_RAMP = np.concatenate([_GREYS, _GRID]).astype(np.uint8)[None]
"""Pixels (1, 472, 3): all greys, and a grid over the colours."""


def to_srgb(profile: bytes | None, mode: str) -> Transform | None:
    """What brings pixels of a mode into sRGB; None where they are, or are to be taken for it.

    A profile that is damaged, or of another colour space than the pixels, counts as none.
    """
    try:
        return _transform(profile, mode) if profile else None
    except (PIL.ImageCms.PyCMSError, OSError, ValueError):
        return None


def convert(pixels: Pixels, transform: Transform | None) -> Pixels:
    """The same pixels in sRGB."""
    if transform is None:
        return pixels
    return np.asarray(transform.apply(PIL.Image.fromarray(pixels)))


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """None where the profile is sRGB itself, as most are; by what it does, as names may lie."""
    source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
    transform = PIL.ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    return None if mode == "RGB" and _is_identity(transform) else transform


def _is_identity(transform: Transform) -> bool:
    moved = np.asarray(transform.apply(PIL.Image.fromarray(_RAMP)), np.int16)
    return int(np.abs(moved - _RAMP).max()) <= _TOLERANCE
