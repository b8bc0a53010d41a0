"""The image encoder as ViT, ViTMAE and Dinov2 name it in files, of transformers 4 and 5 alike."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.huggingface.entries import Entry, Read, derived, divided, linear, reshaped, same
from training.huggingface.layouts import Json, expect
from training.layers.image_encoder import EncoderConfig
from training.layers.image_positions import SincosImagePositions
from training.layers.patches import CHANNELS


@dataclass(frozen=True, slots=True)
class BlockNames:
    """What the parts of a block are called."""

    attention_norm: str
    feed_forward_norm: str
    up: str
    down: str


VIT = BlockNames("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
DEFAULTS: Json = {
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
"""What a config.json may leave out."""
NUM_CLASSES = 2
"""Where it names none."""


def encoder_entries(
    config: EncoderConfig, theirs: str = "vit", names: BlockNames = VIT
) -> Iterator[Entry]:
    """All weights in front of head or decoder; fixed waves are a table there."""
    width, patch = config.d_model, config.patch_size
    token, table = f"{theirs}.embeddings.cls_token", f"{theirs}.embeddings.position_embeddings"
    projection = f"{theirs}.embeddings.patch_embeddings.projection"
    yield reshaped("encoder.class_token.weight", token, here=(width,), there=(1, 1, width))
    if config.positions == "learned":
        shape = (1 + config.grid[0] * config.grid[1], width)
        yield reshaped("encoder.positions.table.weight", table, here=shape, there=(1, *shape))
    else:
        yield derived(table, wave_table(config.grid, width))
    yield reshaped(
        "encoder.patches.projection.weight",
        f"{projection}.weight",
        here=(width, CHANNELS * patch**2),
        there=(width, CHANNELS, patch, patch),
    )
    yield same("encoder.patches.projection.bias", f"{projection}.bias")
    for layer in range(config.num_layers):
        place = f"encoder.blocks.{layer}", f"{theirs}.encoder.layer.{layer}"
        yield from block_entries(*place, width, names)
    yield from linear("encoder.norm", f"{theirs}.layernorm")


def block_entries(ours: str, theirs: str, width: int, names: BlockNames = VIT) -> Iterator[Entry]:
    """A block of encoder or decoder."""
    yield from linear(f"{ours}.attention_norm", f"{theirs}.{names.attention_norm}")
    for part in ("weight", "bias"):
        yield divided(
            f"{ours}.attention.query_key_value.{part}",
            [f"{theirs}.attention.attention.{one}.{part}" for one in ("query", "key", "value")],
            [width] * 3,
        )
    yield from linear(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
    yield from linear(f"{ours}.feed_forward_norm", f"{theirs}.{names.feed_forward_norm}")
    yield from linear(f"{ours}.feed_forward.up", f"{theirs}.{names.up}")
    yield from linear(f"{ours}.feed_forward.down", f"{theirs}.{names.down}")


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


def read_encoder_config(tree: Mapping[str, Any], read: Read, theirs: str = "vit") -> Json:
    """The encoder's keys of the section `model`; of positions the table tells."""
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
        "norm_epsilon": tree["layer_norm_eps"],
        "class_token": True,
        "qk_norm": False,
        "positions": _positions(
            read(f"{theirs}.embeddings.position_embeddings"),
            grid=tree["image_size"] // tree["patch_size"],
            width=tree["hidden_size"],
        ),
    }


def read_num_classes(tree: Mapping[str, Any]) -> int:
    """Rows of a classifier."""
    return len(tree.get("id2label") or ()) or int(tree.get("num_labels", NUM_CLASSES))


def _positions(table: Tensor, *, grid: int, width: int) -> str:
    """Whether a table (1, 1 + P, D) is that of fixed waves; bf16 tells them to 0.4 %."""
    if width % 4:
        return "learned"
    waves = wave_table((grid, grid), width)
    is_waves = waves.shape == table.shape
    is_waves = is_waves and torch.allclose(table.float(), waves, rtol=0, atol=1e-2)
    return "sincos" if is_waves else "learned"
