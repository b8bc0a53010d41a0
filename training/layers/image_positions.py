"""How an image encoder knows where a patch stands: a learned table, or fixed waves.

Both know a grid of the training's image size, and stretch it over any other.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.layers.linear import Embedding
from training.layers.positions import position_angles

Grid = tuple[int, int]
"""Rows and columns of patches."""


class LearnedImagePositions(nn.Module):
    """A learned vector for each patch of the grid and, in front, for the class token."""

    def __init__(self, grid: Grid, d_model: int, *, class_token: bool, std: float) -> None:
        super().__init__()
        self.grid = grid
        self.num_in_front = int(class_token)
        self.table = Embedding(self.num_in_front + grid[0] * grid[1], d_model, std=std)

    def forward(self, patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Patches (B, P, D) with their positions, and the class token's position (1 or 0, D)."""
        table = self.table(torch.arange(self.table.num_embeddings, device=patches.device))
        front, positions = table.tensor_split([self.num_in_front])
        return patches + interpolate_positions(positions, self.grid, grid), front


class SincosImagePositions(nn.Module):
    """Fixed waves: half of the features tell the column, the others the row (He et al. 2021)."""

    def __init__(self, grid: Grid, d_model: int, *, class_token: bool) -> None:
        super().__init__()
        self.grid = grid
        self.num_in_front = int(class_token)
        self.d_model = d_model

    def forward(self, patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Patches (B, P, D) with their positions, and the class token's position, which is 0."""
        rows, columns = (
            _waves(_stretched(own, trained, patches.device), self.d_model // 2)
            for own, trained in zip(grid, self.grid, strict=True)
        )
        across = columns.repeat(grid[0], 1)  # (P, D/2)
        down = rows.repeat_interleave(grid[1], 0)  # (P, D/2)
        waves = torch.cat((across, down), dim=-1)  # (P, D)
        front = patches.new_zeros(self.num_in_front, self.d_model)
        return patches + waves.type_as(patches), front


def adapt_positions(state: dict[str, Tensor], name: str, grid: Grid) -> dict[str, Tensor]:
    """Weights whose learned positions, a table of square images by `name`, fit another grid."""
    if name not in state:
        return state
    table = state[name]
    side = math.isqrt(len(table))
    front, positions = table.tensor_split([len(table) - side**2])
    stretched = interpolate_positions(positions, (side, side), grid)
    return {**state, name: torch.cat((front, stretched))}  # (1 or 0 + P, D)


def interpolate_positions(table: Tensor, grid: Grid, wished: Grid) -> Tensor:
    """A table (P, D) of positions on a grid, stretched over another: bicubic, in fp32."""
    if grid == wished:
        return table
    image = table.float().reshape(*grid, -1).permute(2, 0, 1)[None]  # (1, D, rows, columns)
    stretched = F.interpolate(image, size=wished, mode="bicubic", align_corners=False)
    return stretched[0].flatten(1).T.type_as(table)  # (P, D)


def _stretched(number: int, trained: int, device: torch.device) -> Tensor:
    """Centres of `number` patches in the units of a side that was trained with `trained`."""
    centres = torch.arange(number, device=device, dtype=torch.float32) + 0.5
    return centres * (trained / number) - 0.5


def _waves(positions: Tensor, num_features: int) -> Tensor:
    angles = position_angles(positions, num_features, theta=10_000.0)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)  # (positions, num_features)
