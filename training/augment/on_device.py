"""What is done to a whole batch of images, where the model is: normalisation, mixup and CutMix."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit pixels (B, Y, X, C) to numbers (B, C, Y, X) in fp32 of about 0 +- 1."""
    scale = torch.tensor([255 * value for value in std], device=pixels.device)
    shift = torch.tensor(
        [own / of for own, of in zip(mean, std, strict=True)], device=pixels.device
    )
    return (pixels.float() / scale - shift).permute(0, 3, 1, 2)


def mix(pixels: Tensor, *, share: Tensor, mix_box: Tensor) -> Tensor:
    """Rows (B, C, Y, X) mixed with their neighbours, 2k with 2k + 1; see `plan_mix`."""
    height, width = pixels.shape[-2:]
    left, top, right, bottom = (mix_box[:, n, None, None, None] for n in range(4))
    y = torch.arange(height, device=pixels.device)[:, None]
    x = torch.arange(width, device=pixels.device)
    covered = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # (B, 1, Y, X)
    of_box = (right > left) & (bottom > top)
    weight = torch.where(of_box, (~covered).float(), share[:, None, None, None])
    return pixels * weight + neighbours(pixels) * (1 - weight)


def neighbours(rows: Tensor) -> Tensor:
    """The other row of each pair; a last row without one, as among pictures, is its own."""
    numbers = torch.arange(len(rows), device=rows.device)
    return rows[(numbers ^ 1).where(numbers ^ 1 < len(rows), numbers)]
