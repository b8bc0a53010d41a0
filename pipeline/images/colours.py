"""Colours by ICC profiles -> sRGB, with perceptual intent."""

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageCms

Pixels = npt.NDArray[np.uint8]
Transform = PIL.ImageCms.ImageCmsTransform


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
    """None where the profile is sRGB itself, as most are."""
    source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
    description = source.profile.profile_description or ""
    if mode == "RGB" and description.startswith("sRGB"):
        return None
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
    return PIL.ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
