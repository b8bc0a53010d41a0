"""Sines and cosines of positions, and rotary positions made of them."""

import torch
from torch import Tensor, nn


def position_angles(positions: Tensor, num_features: int, *, theta: float) -> Tensor:
    """Angles (..., num_features / 2), position times theta^(-2i / num_features), in fp32.

    Computed anew each time: a buffer would become bf16 with the model, which cannot tell position
    257 from 256.
    """
    exponents = torch.arange(0, num_features, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (exponents / num_features)
    return positions[..., None].float() * frequencies


class RotaryPositions(nn.Module):
    """Angles by which attention turns queries and keys; the embedding stays as it is."""

    def __init__(self, head_dim: int, *, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_angles(positions, self.head_dim, theta=self.theta)
        angles = angles.unsqueeze(-3)  # (1, T, K/2) or (B, 1, T, K/2)
        return x, torch.stack((angles.cos(), angles.sin()))  # (2, 1, T, K/2), (2, B, 1, T, K/2)
