"""Sines and cosines of positions."""

import torch
from torch import Tensor


def position_angles(positions: Tensor, num_features: int, *, theta: float) -> Tensor:
    """Angles (..., num_features / 2), position times theta^(-2i / num_features), in fp32.

    Computed anew each time: a buffer would become bf16 with the model, which cannot tell position
    257 from 256.
    """
    exponents = torch.arange(0, num_features, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (exponents / num_features)
    return positions[..., None].float() * frequencies
