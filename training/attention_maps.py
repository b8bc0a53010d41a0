"""Attention weights as pictures: over an image, or over the tokens of a text.

Weights are (layers, heads, T, T), each row what one position takes from the others; pictures are
8-bit colours (Y, X, 3).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.layers.attention import capture_attention
from training.lettering import LINE, entitle, label
from training.pictures import enlarge

HEAT = torch.tensor([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])
"""Colours from nothing to the most: five of matplotlib's magma."""
LEAST_SIDE = 224
"""Of a picture of an image, pixels: smaller ones are enlarged."""
GAP = 4
"""Between the pictures of a grid, pixels."""


@torch.no_grad()
def attend(model: nn.Module, compute: Callable[[Tensor], Tensor], of: Tensor) -> Tensor:
    """Attention weights of all layers for the first row of an input, in evaluation mode."""
    was_training = model.training
    model.eval()
    with capture_attention(model) as captured:
        compute(of)
    model.train(was_training)
    return torch.stack([weights[0].cpu() for weights in captured])


def look_at_image(
    model: nn.Module, image: Tensor, normal: Tensor, *, with_rollout: bool
) -> dict[str, Tensor]:
    """What a model looks at in 8-bit pixels (Y, X, 3), which it sees as `normal` (1, C, Y, X)."""
    shape: Any = model.config
    return pictures_of_image(
        attend(model, model.embed, normal),  # type: ignore[arg-type]
        image,
        shape.grid,
        of_class_token=shape.pooling == "class_token",
        with_rollout=with_rollout,
    )


def look_at_text(
    model: nn.Module, batch: Mapping[str, Tensor], names: Sequence[str], *, with_rollout: bool
) -> dict[str, Tensor]:
    """What a model looks at in `tokens` (1, T) of these names.

    Where the batch has their `positions` and `documents` (1, T), it looks inside documents alone.
    """
    compute: Callable[..., Tensor] = model.features  # type: ignore[assignment]
    layout = {"positions": batch.get("positions"), "documents": batch.get("documents")}
    weights = attend(model, partial(compute, **layout), batch["tokens"])
    return pictures_of_text(weights, names, with_rollout=with_rollout)


def pictures_of_text(
    weights: Tensor, tokens: Sequence[str], *, with_rollout: bool
) -> dict[str, Tensor]:
    """A picture for each head of each layer and one for each layer, by name."""
    pictures = _of_heads([[draw_over_tokens(head, tokens) for head in layer] for layer in weights])
    if with_rollout:
        pictures["rollout"] = draw_over_tokens(rollout(weights), tokens)
    return pictures


def pictures_of_image(
    weights: Tensor,
    image: Tensor,
    grid: tuple[int, int],
    *,
    of_class_token: bool,
    with_rollout: bool,
) -> dict[str, Tensor]:
    """As of a text, over a picture (Y, X, 3) of `grid` patches."""
    heat = over_patches(weights, grid, of_class_token=of_class_token)
    pictures = _of_heads([[draw_over_image(head, image) for head in layer] for layer in heat])
    if with_rollout:
        whole = over_patches(rollout(weights), grid, of_class_token=of_class_token)
        pictures["rollout"] = draw_over_image(whole, image)
    return pictures


def rollout(weights: Tensor) -> Tensor:
    """How much each position takes from the input through all layers (Abnar and Zuidema 2020).

    Mean over heads, half of it the residual stream, multiplied from the first layer to the last:
    (T, T), whose rows sum to 1.
    """
    own = torch.eye(weights.shape[-1], dtype=weights.dtype)
    total = own
    for layer in weights.mean(dim=1):
        total = (layer + own) / 2 @ total
    return total


def over_patches(weights: Tensor, grid: tuple[int, int], *, of_class_token: bool) -> Tensor:
    """What the image's vector takes from each patch: (..., T, T) to (..., rows, columns).

    It is the class token's row, or, where the vector is a mean, the mean row of the patches.
    """
    num_in_front = weights.shape[-1] - grid[0] * grid[1]
    rows = weights[..., 0, :] if of_class_token else weights[..., num_in_front:, :].mean(dim=-2)
    return rows[..., num_in_front:].reshape(*rows.shape[:-1], *grid)


def draw_over_image(heat: Tensor, image: Tensor) -> Tensor:
    """A map (rows, columns), brightest at its maximum, over a picture (Y, X, 3)."""
    image = enlarge(image, least_side=LEAST_SIDE)
    size = (image.shape[0], image.shape[1])
    smooth = F.interpolate(heat[None, None].float(), size=size, mode="bilinear")[0, 0]
    share = (smooth / smooth.max().clamp(min=1e-12))[..., None]
    grey = image.float().mean(dim=2, keepdim=True)
    colours = 0.35 * grey + 0.65 * heat_colours(share[..., 0])
    return colours.round().clamp(0, 255).to(torch.uint8)


def draw_over_tokens(weights: Tensor, tokens: Sequence[str]) -> Tensor:
    """Weights (T, T) as squares: what the token of a row takes from that of a column.

    By the square root, since a first token, which sees itself alone, takes 1, and late ones little
    from each of many.
    """
    share = (weights.float() / weights.max().clamp(min=1e-12)).sqrt()
    squares = heat_colours(share).round().to(torch.uint8)
    squares = squares.repeat_interleave(LINE, 0).repeat_interleave(LINE, 1)
    shown = [repr(token)[1:-1].replace(" ", "\u00b7") for token in tokens]
    return label(squares, rows=shown, columns=shown)


def heat_colours(share: Tensor) -> Tensor:
    """Colours (..., 3), 0 to 255, of shares 0 to 1."""
    place = share.clamp(0, 1) * (len(HEAT) - 1)
    below = place.floor().clamp(max=len(HEAT) - 2).long()
    part = (place - below)[..., None]
    return HEAT[below] * (1 - part) + HEAT[below + 1] * part


def tile(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures in rows, about as many as columns, on white."""
    num_columns = math.ceil(len(pictures) ** 0.5)
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    num_rows = -(-len(pictures) // num_columns)
    canvas = pictures[0].new_full(
        (num_rows * (height + GAP) - GAP, num_columns * (width + GAP) - GAP, 3), 255
    )
    for number, picture in enumerate(pictures):
        y, x = (number // num_columns) * (height + GAP), (number % num_columns) * (width + GAP)
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return canvas


def _of_heads(layers: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    pictures: dict[str, Tensor] = {}
    for layer, heads in enumerate(layers, 1):
        titled = [entitle(picture, f"head {head}") for head, picture in enumerate(heads, 1)]
        pictures[f"layer-{layer:02d}"] = tile(titled)
        for head, picture in enumerate(heads, 1):
            pictures[f"layer-{layer:02d}-head-{head:02d}"] = picture
    return pictures
