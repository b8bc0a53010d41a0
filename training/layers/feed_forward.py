"""Feed-forward layers: up, a non-linearity, down."""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.layers.linear import Linear, Stds


class FeedForward(nn.Module):
    """Up, GELU, down."""

    def __init__(self, d_model: int, d_ff: int, *, gelu: str, bias: bool, stds: Stds) -> None:
        super().__init__()
        self.up = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.gelu = nn.GELU(approximate=gelu)
        self.down = Linear(d_ff, d_model, bias=bias, std=stds[1])

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(self.gelu(self.up(x)))
        return down


class GatedFeedForward(nn.Module):
    """SwiGLU: the SiLU of a gate times up, then down."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool, stds: Stds) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.up = Linear(d_model, d_ff, bias=bias, std=stds[0])
        self.down = Linear(d_ff, d_model, bias=bias, std=stds[1])

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return down
