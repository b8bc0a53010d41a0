"""The image encoder as transformers' ViT and ViTMAE name it, in files of version 4 and 5 alike."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from training.huggingface.entries import Entry, derived, divided, linear, reshaped, same
from training.huggingface.layouts import Json, expect, require
from training.layers.image_encoder import EncoderConfig
from training.layers.image_positions import SincosImagePositions
from training.layers.patches import CHANNELS

TABLE = "vit.embeddings.position_embeddings"
DEFAULTS: Json = {
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""What a config.json may leave out."""


def find_obstacles(config: EncoderConfig) -> list[str]:
    """Parts that neither has."""
    return require(config, class_token=True, qk_norm=False, layer_scale=0.0)


def encoder_entries(config: EncoderConfig) -> Iterator[Entry]:
    """All weights in front of head or decoder; fixed waves are a table there."""
    width, patch = config.d_model, config.patch_size
    projection = "vit.embeddings.patch_embeddings.projection"
    yield reshaped(
        "encoder.class_token.weight", "vit.embeddings.cls_token", here=(width,), there=(1, 1, width)
    )
    if config.positions == "learned":
        num_rows = 1 + config.grid[0] * config.grid[1]
        shape = (num_rows, width)
        yield reshaped("encoder.positions.table.weight", TABLE, here=shape, there=(1, *shape))
    else:
        yield derived(TABLE, wave_table(config.grid, width))
    yield reshaped(
        "encoder.patches.projection.weight",
        f"{projection}.weight",
        here=(width, CHANNELS * patch**2),
        there=(width, CHANNELS, patch, patch),
    )
    yield same("encoder.patches.projection.bias", f"{projection}.bias")
    for layer in range(config.num_layers):
        yield from block_entries(f"encoder.blocks.{layer}", f"vit.encoder.layer.{layer}", width)
    yield from linear("encoder.norm", "vit.layernorm")


def block_entries(ours: str, theirs: str, width: int) -> Iterator[Entry]:
    """A block of encoder or decoder."""
    yield from linear(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
    for part in ("weight", "bias"):
        yield divided(
            f"{ours}.attention.query_key_value.{part}",
            [f"{theirs}.attention.attention.{one}.{part}" for one in ("query", "key", "value")],
            [width] * 3,
        )
    yield from linear(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
    yield from linear(f"{ours}.feed_forward_norm", f"{theirs}.layernorm_after")
    yield from linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
    yield from linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense")


def wave_table(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed waves as the table (1, 1 + P, width) of transformers, zeros for the class token."""
    waves = SincosImagePositions(grid, width, class_token=True)
    patches, front = waves(torch.zeros(1, grid[0] * grid[1], width), grid)
    return torch.cat((front[None], patches), dim=1)


def write_encoder_config(config: EncoderConfig) -> Json:
    """The encoder's part of config.json."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "layer_norm_eps": config.norm_epsilon,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": CHANNELS,
        "qkv_bias": True,
    }


def read_encoder_config(tree: Mapping[str, Any], table: Tensor) -> Json:
    """The encoder's keys of the section `model`; of positions the table (1, 1 + P, D) tells."""
    tree = {**DEFAULTS, **tree}
    expect(tree, hidden_act="gelu", qkv_bias=True, num_channels=CHANNELS)
    for name in ("image_size", "patch_size"):
        if not str(tree[name]).isdecimal():
            raise ValueError(f"{name} is {tree[name]}; only squares, one number, are read")
    return {
        "image_size": tree["image_size"],
        "patch_size": tree["patch_size"],
        "d_model": tree["hidden_size"],
        "num_layers": tree["num_hidden_layers"],
        "num_heads": tree["num_attention_heads"],
        "d_ff": tree["intermediate_size"],
        "norm_epsilon": tree["layer_norm_eps"],
        "positions": _positions(
            table, grid=tree["image_size"] // tree["patch_size"], width=tree["hidden_size"]
        ),
    }


def _positions(table: Tensor, *, grid: int, width: int) -> str:
    """Whether a table is that of fixed waves; bf16 tells them to 0.4 %."""
    if width % 4:
        return "learned"
    waves = wave_table((grid, grid), width)
    is_waves = waves.shape == table.shape
    is_waves = is_waves and torch.allclose(table.float(), waves, rtol=0, atol=1e-2)
    return "sincos" if is_waves else "learned"
