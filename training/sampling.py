"""Tokens sampled from a model: temperature, top-k, top-p; the same seed gives the same tokens."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

LARGEST_SEED = 2**64 - 1
"""That torch's generators take."""


class CachedModel(Protocol):
    """What sampling needs of a model."""

    def features(self, tokens: Tensor, *, caches: Sequence[Any] | None = None) -> Tensor:
        """Features (B, T, D) of tokens (B, T) that continue what the caches hold."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V)."""
        ...

    def new_caches(self) -> Sequence[Any]:
        """Empty caches, one per block."""
        ...


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Tensor,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    max_positions: int | None = None,
) -> Tensor:
    """The prompts and `num_tokens` sampled tokens behind each: (B, T) -> (B, T + num_tokens).

    Args:
        model: in eval mode, if it has dropout.
        tokens: prompts of one length, at least one token.
        num_tokens: how many to sample.
        temperature: 0 takes the likeliest token; below 1 sharpens, above 1 flattens.
        top_k: sample among the k likeliest; 0 among all.
        top_p: sample among the fewest likeliest whose probability reaches this share.
        seed: of the sampling.
        max_positions: context that the model was trained with; its own limit if None.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"prompts are (B, T) with T of at least 1, found {tuple(tokens.shape)}")
    check_drawing(
        num_tokens=num_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    window = _window(model, max_positions)
    generator = torch.Generator().manual_seed(seed)
    decoder: CachedModel = model  # type: ignore[assignment]
    caches, unread = decoder.new_caches(), tokens[:, -window:]
    held = 0  # positions in the caches
    for _ in range(num_tokens):
        if held + unread.shape[1] > window:
            # Positions are full: go on behind the later half of the window, read anew.
            caches, unread, held = decoder.new_caches(), tokens[:, -max(1, window // 2) :], 0
        features = decoder.features(unread, caches=caches)
        held += unread.shape[1]
        probabilities = next_probabilities(
            decoder.logits(features[:, -1]), temperature=temperature, top_k=top_k, top_p=top_p
        )
        # Drawn on the CPU, whose generator gives the same numbers whatever the device.
        unread = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(tokens.device)
        tokens = torch.cat((tokens, unread), dim=1)  # (B, T + 1)
    return tokens


def check_drawing(
    *, num_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    """Raise ValueError for numbers that `generate` has no meaning for."""
    if num_tokens < 0:
        raise ValueError(f"num_tokens is {num_tokens}; it must be at least 0")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be at least 0 and finite")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or 0 for all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed is {seed}; it must be at least 0 and at most {LARGEST_SEED}")


def next_probabilities(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Probabilities to sample from, of logits (B, V): temperature, then top-k, then top-p."""
    logits = logits.float()
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: it has diverged")
    if temperature == 0:
        return torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)
    # Below 0 before the division, so that a tiny temperature cannot overflow to inf - inf.
    below = logits - logits.amax(dim=1, keepdim=True)
    probabilities = (below / temperature).softmax(dim=1)
    # Stable, so that among equals the lower token id is taken on every device.
    ordered, ids = probabilities.sort(dim=1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = 0.0
        ordered = ordered / ordered.sum(dim=1, keepdim=True)
    if top_p < 1:
        reached_before = ordered.cumsum(dim=1) - ordered
        ordered = ordered.masked_fill(reached_before >= top_p, 0.0)
    kept = torch.zeros_like(probabilities).scatter(1, ids, ordered)
    return kept / kept.sum(dim=1, keepdim=True)


def _window(model: nn.Module, max_positions: int | None) -> int:
    limit: int = model.config.max_positions  # type: ignore[union-attr,assignment]
    if max_positions is not None and not 1 <= max_positions <= limit:
        raise ValueError(f"max_positions is {max_positions}; this model takes 1 to {limit}")
    return limit if max_positions is None else max_positions
