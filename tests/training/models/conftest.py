"""Weights that tell models apart."""

import pytest
import torch


@pytest.fixture
def roughen():
    """Moves weights away from zeros, ones and small numbers, so that every part shows."""

    def change(model):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # positions of a masked autoencoder stay as they are
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)

    return change
