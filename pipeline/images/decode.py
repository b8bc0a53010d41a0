"""Encoded images -> 8-bit sRGB pixels, upright; every oddity of formats has a stated rule.

| found | becomes |
|---|---|
| orientation in EXIF | upright pixels; damaged EXIF counts as none |
| ICC profile | converted to sRGB, perceptual intent; a damaged profile counts as none |
| greyscale, 1 bit, palette | RGB; stored bytes of 8-bit grey that need no change stay |
| alpha, or a transparent colour | composed over `background`; such a colour of 2, 4 or 16 bits is
opaque |
| 12- and 16-bit greyscale | 8 bits, scaled and rounded; 16-bit colour keeps the high byte |
| CMYK, also Adobe's inverted one | RGB by its profile, or by the plain formula |
| animation | its first frame |
| grey of 32-bit integers or floating point | `unsupported_pixels`: their range is not known |
| what Pillow cannot open, as floating-point RGB or 16-bit grey with alpha in TIFF |
`unknown_format` |
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageFile

from pipeline.images import jpeg
from pipeline.images.colours import Transform, to_srgb
from pipeline.images.containers import (
    is_cut_tiff,
    is_cut_webp,
    is_plain_png,
    mended_webp,
    png_fault,
)

Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""By content, whatever the name says; cameras' MPO files are JPEG with more behind it."""
SHRINK_MARGIN = 2
"""A JPEG is shrunk on load to no less than this times the wished side: the resize behind it then
still has all frequencies that the result can hold."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF; 0 of the second says that 0 is white."""

TRUNCATED = "truncated_image"
"""The reason that `accept_truncated` forgives."""

PIL.Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and an image above it one reject


@dataclass(frozen=True, kw_only=True)
class Config:
    """How images are decoded."""

    max_pixels: int = 100_000_000
    """An image of more pixels is a reject, before any of them is decoded."""
    memory_mib: int = 2048
    """Memory that one image may take while it is processed, MiB; above it, it is a reject. An
    image of `max_pixels` takes 1,700 at the worst: turned, from CMYK, and hardly scaled."""
    time_limit_seconds: float = 60.0
    """CPU time that one image may take, seconds; above it, it is a reject."""
    accept_truncated: bool = False
    """Keep an image that breaks off; else it is a reject. What is missing is grey (JPEG), black
    (PNG, TIFF; BMP, at its top), `background` where it has alpha, a colour of a palette (GIF), what
    lies above going on (WebP). A compressed TIFF, one whose directory is lost, and an image that
    breaks off before its pixels stay rejects."""
    background: tuple[int, ...] = (255, 255, 255)
    """Red, green and blue, 0 to 255, that transparent pixels lie over."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels: {self.max_pixels}; at least 1 is allowed")
        if self.memory_mib < 16:
            raise ValueError(f"memory_mib: {self.memory_mib}; at least 16 are allowed")
        if not 0 < self.time_limit_seconds < math.inf:
            found = self.time_limit_seconds
            raise ValueError(f"time_limit_seconds: {found}; a number above 0 is allowed")
        if len(self.background) != 3 or not all(0 <= one <= 255 for one in self.background):
            raise ValueError(f"background: {self.background}; three numbers from 0 to 255")


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image that could be decoded."""

    pixels: Pixels
    """(height, width, 3), upright."""
    conversion: Transform | None
    """What brings the colours into sRGB, left to be done behind a resize, where pixels are fewer;
    None: they are sRGB."""
    format: str
    """In which it was stored, one of `FORMATS`."""
    untouched: bool
    """Whether the stored pixels are these pixels, or their greys: nothing was converted, turned or
    shrunk. Every reader makes three equal channels of a grey one."""


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that does not come into the dataset."""

    reason: str
    """One word for counting."""
    detail: str
    """What was found."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An image of which only the header was read."""

    encoded: bytes
    """The file."""
    image: PIL.Image.Image
    """Not decoded yet."""
    orientation: int
    """Of EXIF, 1 to 8."""
    is_mended: bool = False
    """Whether something was put in the place of what the file has lost."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image, pixels."""
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 else (width, height)


def open_image(encoded: bytes, config: Config) -> Opened | BadImage:
    """Read the header of an image; raises nothing but `MemoryError` for what the bytes hold."""
    if not encoded:
        return BadImage("empty_file", "no bytes")
    is_cut = is_cut_webp(encoded) or is_cut_tiff(encoded, {})
    is_mended = config.accept_truncated and is_cut_webp(encoded)
    encoded = mended_webp(encoded) if is_mended else encoded
    try:
        image = _open(encoded)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever damaged bytes lead to
        if isinstance(error, PIL.UnidentifiedImageError) and not is_cut:
            return BadImage("unknown_format", f"begins with {encoded[:12]!r}")
        return _bad(error, is_cut=is_cut)
    if image.width * image.height > config.max_pixels:
        found = f"{image.width} x {image.height} pixels"
        return BadImage("too_many_pixels", f"{found}; images.decode.max_pixels={config.max_pixels}")
    return Opened(encoded, image, _orientation(image), is_mended)


def load(opened: Opened, config: Config, *, wished_side: int = 0) -> Decoded | BadImage:
    """Decode an opened image; raises nothing but `MemoryError` for what the bytes hold.

    Args:
        opened: the image.
        config: rules and limits.
        wished_side: the shorter side that a resize will make; a larger JPEG may be shrunk while it
            is decoded, to no less than `SHRINK_MARGIN` times this. 0: all pixels.
    """
    try:
        return _load(opened, config, wished_side)
    except Exception as error:  # noqa: BLE001 - as above
        bad = _bad(error, is_cut=_is_cut(opened))
    if bad.reason != TRUNCATED or not config.accept_truncated:
        return bad
    PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        found = _load(replace(opened, image=_open(opened.encoded)), config, wished_side)
        return found if isinstance(found, BadImage) else replace(found, untouched=False)
    except Exception as error:  # noqa: BLE001 - as above
        return _bad(error, is_cut=_is_cut(opened))
    finally:
        PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False


def decode(encoded: bytes, config: Config) -> Decoded | BadImage:
    """Decode an image at its full size."""
    opened = open_image(encoded, config)
    return opened if isinstance(opened, BadImage) else load(opened, config)


def _open(encoded: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)


def _load(opened: Opened, config: Config, wished_side: int) -> Decoded | BadImage:
    shrink = _shrink(opened.image, wished_side)
    return _load_jpeg(opened, shrink) or _load_any(opened, config, shrink)


def _shrink(image: PIL.Image.Image, wished_side: int) -> int:
    """By how much a JPEG is divided while it is decoded."""
    if not wished_side or image.format not in ("JPEG", "MPO"):
        return 1
    least = SHRINK_MARGIN * wished_side
    return next((by for by in (8, 4, 2) if min(image.size) >= by * least), 1)


def _load_jpeg(opened: Opened, shrink: int) -> Decoded | None:
    """The usual JPEG; None for what is not, or has a fault."""
    image, profile = opened.image, opened.image.info.get("icc_profile")
    if image.format != "JPEG" or not (image.mode == "RGB" or image.mode == "L" and not profile):
        return None
    pixels = jpeg.decode(opened.encoded, image.size, shrink=shrink)
    if pixels is None:
        return None
    turn, conversion = _TURNS.get(opened.orientation), to_srgb(profile, image.mode)
    return Decoded(
        pixels=pixels if turn is None else turn(pixels),
        conversion=conversion,
        format="JPEG",
        untouched=shrink == 1 and turn is None and conversion is None,
    )


def _load_any(opened: Opened, config: Config, shrink: int) -> Decoded | BadImage:
    image, stored = opened.image, opened.image.size
    if shrink > 1:
        image.draft(image.mode, (stored[0] // shrink, stored[1] // shrink))
    image.load()
    is_judged = image.format in ("JPEG", "MPO") and not PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    if is_judged and (fault := jpeg.find_damage(opened.encoded)):
        return BadImage("damaged_image", fault)
    if image.mode in ("I", "F"):
        return BadImage("unsupported_pixels", f"mode {image.mode}: 32 bits of unknown range")
    if image.format == "PNG" and (fault := png_fault(opened.encoded)):
        return BadImage("damaged_image", fault)
    turn = _TURNS.get(opened.orientation)
    profile = image.info.get("icc_profile")
    is_plain = image.format != "PNG" or is_plain_png(opened.encoded)
    is_kept = _is_opaque(image) and image.mode in ("RGB", "L") and not to_srgb(profile, image.mode)
    pixels = np.asarray(_rgb(image, profile, config.background))
    is_kept = is_kept and is_plain and not opened.is_mended and not _is_animated(image)
    return Decoded(
        pixels=pixels if turn is None else turn(pixels),
        conversion=None,
        format="JPEG" if image.format == "MPO" else str(image.format),
        untouched=is_kept and turn is None and image.size == stored,
    )


def _is_animated(image: PIL.Image.Image) -> bool:
    """Whether there is more behind the first frame, be it damaged or broken off."""
    try:
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # noqa: BLE001 - decoders raise whatever damaged bytes lead to
        return True


def _orientation(image: PIL.Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns it while it loads, and tells its upright size
        return 1
    try:
        found = int(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF counts as none
        return 1
    return found if found in _TURNS else 1


_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


def _rgb(
    image: PIL.Image.Image, profile: bytes | None, background: tuple[int, ...]
) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        image = _in_8_bits(image)
    alpha = _alpha(image)
    if image.mode in ("1", "P", "PA", "LA", "RGBA", "RGBa", "La"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    conversion = to_srgb(profile, image.mode)
    image = image if conversion is None else conversion.apply(image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is None:
        return image
    under = PIL.Image.new("RGB", image.size, background)
    under.paste(image, mask=alpha)
    return under


def _in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Of 12 or 16 bits, which a TIFF may count from white; Pillow gives them as stored."""
    tags = getattr(image, "tag_v2", {})
    largest = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    values = np.asarray(image).astype(np.uint32)
    values *= 255  # in place: an image of `max_pixels` takes 400 MB of these
    values += largest // 2
    values //= largest
    scaled = values.astype(np.uint8)
    return PIL.Image.fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled)


def _alpha(image: PIL.Image.Image) -> PIL.Image.Image | None:
    """The opacity of each pixel, or None where all are opaque by their format."""
    return None if _is_opaque(image) else image.convert("RGBA").getchannel("A")


def _is_opaque(image: PIL.Image.Image) -> bool:
    has_channel = image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    has_colour = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    return not has_channel and not has_colour


def _is_cut(opened: Opened) -> bool:
    tags = getattr(opened.image, "tag_v2", {})
    return opened.is_mended or is_cut_tiff(opened.encoded, tags)


def _bad(error: Exception, *, is_cut: bool) -> BadImage:
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        raise MemoryError from None
    truncated = is_cut or "truncated" in str(error).lower() or isinstance(error, EOFError)
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return BadImage(TRUNCATED if truncated else "damaged_image", detail)
