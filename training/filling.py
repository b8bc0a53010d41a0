"""Text of an encoder-decoder: what is missing in a source, token by token."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from training.layers.cross_attention import SourceCache
from training.models.encoder_decoder import Model
from training.sampling import generate


class GivenSource(nn.Module):
    """A decoder whose source is given, as sampling wants it."""

    def __init__(self, model: Model, source: Tensor, *, num_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.encoded = model.encode(source)  # (1, S, D)
        self.config = SimpleNamespace(max_positions=num_tokens + 1)  # its positions have no end

    def features(self, tokens: Tensor, *, caches: Sequence[SourceCache] | None = None) -> Tensor:
        """Features (1, T, D) of tokens (1, T) that continue what the caches hold."""
        return self.model.decode(tokens, self.encoded, caches=caches)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V)."""
        return self.model.logits(features)

    def new_caches(self) -> list[SourceCache]:
        """Empty caches, one per block."""
        return self.model.new_caches()


@torch.no_grad()
def fill(
    model: Model,
    source: list[int],
    *,
    end: int,
    num_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> list[int]:
    """Tokens of the target of a source, up to its end, at most `num_tokens`."""
    device = next(model.parameters()).device
    given = torch.tensor([[*source, end]], device=device)  # (1, S)
    tokens = generate(
        GivenSource(model, given, num_tokens=num_tokens),
        torch.full((1, 1), end, device=device),
        num_tokens=num_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    target: list[int] = tokens[0, 1:].tolist()
    return target[: target.index(end)] if end in target else target
