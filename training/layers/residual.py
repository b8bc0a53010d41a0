"""What the result of attention or feed-forward goes through before it joins the residual stream."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def build_join(
    d_model: int, *, layer_scale: float, dropout: float, stochastic_depth: float
) -> nn.Sequential:
    """LayerScale, dropout and stochastic depth, those that are not 0."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if layer_scale:
        parts["scale"] = LayerScale(d_model, initial=layer_scale)
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    if stochastic_depth:
        parts["depth"] = StochasticDepth(stochastic_depth)
    return nn.Sequential(parts)


class LayerScale(nn.Module):
    """A learned factor for each feature (Touvron et al. 2021)."""

    def __init__(self, d_model: int, *, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class StochasticDepth(nn.Module):
    """In training, drops all of a sample with a probability, and scales up what is left.

    The block is then the identity for this sample (Huang et al. 2016).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = 1 - self.probability
        survives = torch.rand(x.shape[0], 1, 1, device=x.device) < kept  # one for each sample
        return x * (survives / kept).type_as(x)
