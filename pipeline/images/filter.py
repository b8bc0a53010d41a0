"""Which images are good enough: by their stored size and shape, and whether they show anything."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import PIL.Image

from pipeline.images.decode import BadImage


@dataclass(frozen=True, kw_only=True)
class Config:
    """Limits on images; 0 switches one off."""

    min_side: int = 0
    """Smallest shorter side, pixels."""
    max_aspect_ratio: float = 0.0
    """Largest longer side over shorter side."""
    min_area: int = 0
    """Smallest width x height, pixels."""
    max_area: int = 0
    """Largest width x height, pixels."""
    min_bytes: int = 0
    """Smallest file, bytes."""
    min_deviation: float = 0.0
    """Smallest standard deviation of the grey values of the scaled image, 0 to 127: below it
    nothing is to be seen."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if not 0 <= getattr(self, one.name) < float("inf"):
                raise ValueError(f"{one.name}: {getattr(self, one.name)}; a number from 0 on")


def check_size(num_bytes: int, width: int, height: int, config: Config) -> BadImage | None:
    """The first limit that an image breaks by its size alone."""
    shorter, longer, area = min(width, height), max(width, height), width * height
    size = f"{width} x {height}"
    if num_bytes < config.min_bytes:
        return BadImage("too_few_bytes", f"{num_bytes} bytes; min_bytes={config.min_bytes}")
    if shorter < config.min_side:
        return BadImage("side_too_small", f"{size}; min_side={config.min_side}")
    if config.max_aspect_ratio and longer > config.max_aspect_ratio * shorter:
        return BadImage("too_elongated", f"{size}; max_aspect_ratio={config.max_aspect_ratio}")
    if area < config.min_area:
        return BadImage("area_too_small", f"{size}; min_area={config.min_area}")
    if config.max_area and area > config.max_area:
        return BadImage("area_too_large", f"{size}; max_area={config.max_area}")
    return None


def check_content(pixels: npt.NDArray[np.uint8], config: Config) -> BadImage | None:
    """Whether pixels (height, width, 3) show anything."""
    if not config.min_deviation:
        return None
    deviation = float(np.asarray(PIL.Image.fromarray(pixels).convert("L")).std())
    if deviation >= config.min_deviation:
        return None
    return BadImage("near_constant", f"deviation {deviation:.2f}; {config.min_deviation}")
