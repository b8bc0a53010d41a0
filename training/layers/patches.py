"""Images as sequences of square patches, row by row; a patch is its channels, one after another."""

from torch import Tensor, nn

from training.layers.linear import Linear

CHANNELS = 3
"""Red, green and blue."""


class PatchEmbedding(nn.Module):
    """Patches (B, P, D) of pixels (B, C, Y, X): a convolution whose stride is its width."""

    def __init__(self, patch_size: int, d_model: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        num_in = CHANNELS * patch_size**2
        self.projection = Linear(num_in, d_model, bias=True, std=num_in**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        whole = patchify(pixels, self.patch_size).type_as(self.projection.weight)  # bf16, say
        patches: Tensor = self.projection(whole)
        return patches


def patch_grid(pixels: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches in pixels (B, C, Y, X).

    Raises:
        ValueError: the patches do not fill the image.
    """
    height, width = pixels.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"an image of {width} x {height} pixels has no whole number of patches of {patch_size}"
        )
    return height // patch_size, width // patch_size


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Pixels (B, C, Y, X) to patches (B, P, C patch_size patch_size)."""
    rows, columns = patch_grid(pixels, patch_size)
    sides = (rows, patch_size, columns, patch_size)
    x = pixels.reshape(*pixels.shape[:2], *sides)  # (B, C, rows, p, columns, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, P, C p p)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Patches (B, P, C patch_size patch_size) back to pixels (B, C, Y, X)."""
    parts = (-1, patch_size, patch_size)
    x = patches.reshape(len(patches), *grid, *parts)  # (B, rows, columns, C, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, C, Y, X)
