"""Feed-forward layers: up, a non-linearity, down."""

from torch import Tensor, nn

from training.layers.linear import Linear, Stds


class FeedForward(nn.Module):
    """Up, a non-linearity, down."""

    def __init__(
        self, d_model: int, d_ff: int, *, activation: nn.Module, bias: bool, stds: Stds
    ) -> None:
        super().__init__()
        self.up = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.activation = activation
        self.down = Linear(d_ff, d_model, bias=bias, std=stds[1])

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.activation(self.up(x)))
        return down


class GatedFeedForward(nn.Module):
    """A non-linearity of a gate times up, then down: SwiGLU by SiLU, GEGLU by GELU."""

    def __init__(
        self, d_model: int, d_ff: int, *, activation: nn.Module, bias: bool, stds: Stds
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.up = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.down = Linear(d_ff, d_model, bias=bias, std=stds[1])

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return down
