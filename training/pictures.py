"""8-bit pictures (Y, X, 3) for TensorBoard: grids of images, confusion matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.lettering import LINE, entitle, fill_squares, label

GAP = 2
"""Between the images of a grid, pixels."""
LEAST_IMAGE = 96
"""Side of an image in a grid, pixels: smaller ones are enlarged."""
LEAST_MATRIX = 400
"""Side of a confusion matrix without its names, pixels."""
MOST_NUMBERS = 20
"""Classes up to which a confusion matrix has numbers in its squares."""


def grid_picture(
    columns: Sequence[Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    titles: Sequence[str] = (),
) -> Tensor:
    """Normalised images (B, C, Y, X), a row each and a column for each list, under its title.

    One list alone is laid out as a square.
    """
    shown = [_to_bytes(images, mean=mean, std=std) for images in columns]
    if len(shown) == 1:
        across = max(1, round(len(shown[0]) ** 0.5))
        shown = [shown[0][at::across] for at in range(across)]
    height = max(len(column) for column in shown)
    drawn = [torch.cat(list(_framed(column, height))) for column in shown]  # (rows Y, X, 3) each
    if titles:
        drawn = [entitle(one, title) for one, title in zip(drawn, titles, strict=True)]
    return torch.cat(drawn, dim=1)  # (Y, X, 3)


def confusion_picture(shares: Tensor, classes: Sequence[str]) -> Tensor:
    """Shares (classes, classes) of true (row) and found (column) classes.

    White is none of a class's images and dark blue all; the diagonal is what is right. Where there
    is place for them, numbers are per cent of the images of the true class.
    """
    of_class = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    side = max(LINE, -(-LEAST_MATRIX // len(shares)))
    large = of_class.repeat_interleave(side, 0).repeat_interleave(side, 1)[..., None]
    dark = torch.tensor([8.0, 48.0, 107.0], dtype=shares.dtype)
    squares = (255 + (dark - 255) * large.sqrt()).round().to(torch.uint8)
    if len(shares) <= MOST_NUMBERS:
        squares = fill_squares(squares, [[f"{100 * one:.0f}" for one in row] for row in of_class])
    title = "row: true class, column: found class, per cent of the row"
    return entitle(label(squares, rows=classes, columns=classes), title)


def enlarge(images: Tensor, *, least_side: int) -> Tensor:
    """Images (..., Y, X, 3) at a whole multiple of their size, `least_side` high and wide."""
    scale = -(-least_side // min(images.shape[-3:-1]))
    return images.repeat_interleave(scale, -3).repeat_interleave(scale, -2)


def _to_bytes(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, Y, X, C), on the CPU."""
    rows = pixels.permute(0, 2, 3, 1).float()
    colours = rows * rows.new_tensor(std) + rows.new_tensor(mean)
    stored = (255 * colours).round().clamp(0, 255).to(torch.uint8).cpu()
    return enlarge(stored, least_side=LEAST_IMAGE)


def _framed(images: Tensor, number: int) -> Tensor:
    """White borders around each image, and white images up to a number."""
    _, height, width, channels = images.shape
    framed = images.new_full((number, height + GAP, width + GAP, channels), 255)
    framed[: len(images), :height, :width] = images
    return framed
