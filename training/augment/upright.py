"""Images as people keep them, upright and in sRGB: what the pipeline does when it builds a dataset.

The same rules: orientation of EXIF, colour profiles, 16 bits, transparency over white, the first
frame of an animation.
"""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""That are opened, by content, whatever the name says."""
MAX_PIXELS = 100_000_000
"""Of one image, a guard against decompression bombs; as the pipeline's `max_pixels`."""


def open_upright(encoded: bytes | memoryview) -> PIL.Image.Image:
    """Decode any image to RGB.

    Raises:
        Exception: whatever decoders raise for damaged bytes, and for pixels of unknown range.
    """
    PIL.Image.MAX_IMAGE_PIXELS = None  # ours is the limit, and told in one line
    if not encoded:
        raise ValueError("no bytes")
    image: PIL.Image.Image = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, above {MAX_PIXELS:,}")
    image.load()
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}: 32 bits of unknown range")
    return _over_white(_in_srgb(_in_8_bits(_turned(image))))


def _turned(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged EXIF counts as none
        return image


def _in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    if not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint32)
    return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _in_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """A profile of another colour space than the pixels, or a damaged one, counts as none."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return image
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = PIL.ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = PIL.ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (PIL.ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert converted is not None, "only a conversion in place gives nothing"
    return converted


def _over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    under = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(under, image).convert("RGB")
