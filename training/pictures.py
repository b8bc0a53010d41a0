"""8-bit pictures for TensorBoard: grids of images, confusion matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

GAP = 2
"""Between the images of a grid, pixels."""
LEAST_SIDE = 400
"""Of a confusion matrix, pixels."""


def grid_picture(
    columns: Sequence[Tensor], *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Normalised images (B, C, Y, X), a row each and a column for each list: (Y, X, 3).

    One list alone is laid out as a square.
    """
    shown = [_to_bytes(images, mean=mean, std=std) for images in columns]
    if len(shown) == 1:
        across = max(1, round(len(shown[0]) ** 0.5))
        shown = [shown[0][at::across] for at in range(across)]
    height = max(len(column) for column in shown)
    padded = [_framed(column, height) for column in shown]
    return torch.cat([torch.cat(list(column)) for column in padded], dim=1).cpu()  # (Y, X, 3)


def confusion_picture(shares: Tensor) -> Tensor:
    """Shares (classes, classes) of true (row) and found (column) classes: (Y, X, 3).

    White is none of a class's images and dark blue all; the diagonal is what is right.
    """
    of_class = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    scale = -(-LEAST_SIDE // len(shares))
    large = of_class.repeat_interleave(scale, 0).repeat_interleave(scale, 1)[..., None]
    dark = torch.tensor([8.0, 48.0, 107.0], dtype=shares.dtype)
    return (255 + (dark - 255) * large.sqrt()).round().to(torch.uint8)


def _to_bytes(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, Y, X, C)"""
    rows = pixels.permute(0, 2, 3, 1).float()
    colours = rows * rows.new_tensor(std) + rows.new_tensor(mean)
    return (255 * colours).round().clamp(0, 255).to(torch.uint8)


def _framed(images: Tensor, number: int) -> Tensor:
    """White borders around each image, and white images up to a number."""
    _, height, width, channels = images.shape
    framed = images.new_full((number, height + GAP, width + GAP, channels), 255)
    framed[: len(images), :height, :width] = images
    return framed
