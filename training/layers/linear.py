"""Linear layers and embeddings with normal initial weights."""

from torch import nn

Stds = tuple[float, float]
"""Of the initial weights: inner projections, and those whose result joins the residual stream."""


class Linear(nn.Linear):
    """A linear layer with normal initial weights and zero biases."""

    def __init__(self, num_in: int, num_out: int, *, bias: bool, std: float) -> None:
        self.std = std  # before nn.Linear initialises by the method below
        super().__init__(num_in, num_out, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """An embedding with normal initial weights."""

    def __init__(self, num_rows: int, d_model: int, *, std: float) -> None:
        self.std = std  # before nn.Embedding initialises by the method below
        super().__init__(num_rows, d_model)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
