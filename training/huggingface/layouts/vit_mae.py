"""The masked autoencoder, ViTMAE there; its decoder tells patches pixel by pixel."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from training.huggingface import image_encoder
from training.huggingface.entries import Entry, Read, derived, linear, reshaped
from training.huggingface.layouts import Json, require
from training.layers.patches import CHANNELS
from training.models.mae import Config

MODEL = "mae"
ARCHITECTURE = "ViTMAEForPreTraining"
PREFIX = "vit."
MAY_LACK = ("decoder.",)
OTHER_NAMES: Mapping[str, str] = {"decoder.decoder_encoder.layer.": "decoder.decoder_layers."}
"""Transformers 5 (5.23) writes the first; published weights and version 4 have the second."""

DEFAULTS: Json = {
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
    "mask_ratio": 0.75,
}
"""What a config.json may leave out."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that it does not have."""
    return require(config, class_token=True, qk_norm=False, layer_scale=0.0)


def entries(config: Config) -> Iterator[Entry]:
    """All weights, and the decoder's waves, which are a table there."""
    yield from image_encoder.encoder_entries(config)
    width = config.decoder_d_model
    yield from linear("decoder.embedding", "decoder.decoder_embed")
    yield reshaped(
        "decoder.mask_token.weight", "decoder.mask_token", here=(width,), there=(1, 1, width)
    )
    yield derived("decoder.decoder_pos_embed", image_encoder.wave_table(config.grid, width))
    for layer in range(config.decoder_num_layers):
        theirs = f"decoder.decoder_layers.{layer}"
        yield from image_encoder.block_entries(f"decoder.blocks.{layer}", theirs, width)
    yield from linear("decoder.norm", "decoder.decoder_norm")
    for part in ("weight", "bias"):
        yield _by_pixel(f"decoder.head.{part}", f"decoder.decoder_pred.{part}")


def write_config(config: Config) -> Json:
    """The model's part of config.json."""
    return {
        "model_type": "vit_mae",
        "architectures": [ARCHITECTURE],
        **image_encoder.write_encoder_config(config),
        "intermediate_size": config.d_ff,
        "decoder_hidden_size": config.decoder_d_model,
        "decoder_num_hidden_layers": config.decoder_num_layers,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": config.decoder_d_ff,
        "mask_ratio": config.mask_ratio,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`; of what stands for the image it says nothing."""
    tree = {**DEFAULTS, **tree}
    return image_encoder.read_encoder_config(tree, read) | {
        "d_ff": tree["intermediate_size"],
        "layer_scale": 0.0,
        "mask_ratio": tree["mask_ratio"],
        "decoder_d_model": tree["decoder_hidden_size"],
        "decoder_num_layers": tree["decoder_num_hidden_layers"],
        "decoder_num_heads": tree["decoder_num_attention_heads"],
        "decoder_d_ff": tree["decoder_intermediate_size"],
    }


def _by_pixel(ours: str, theirs: str) -> Entry:
    """Rows (C, p p) here, (p p, C) there."""

    def swap(rows: Tensor, num_outer: int) -> Tensor:
        return rows.reshape(num_outer, -1, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)

    return Entry(
        ours,
        (theirs,),
        lambda own: (swap(own, CHANNELS),),
        lambda parts: swap(parts[0], len(parts[0]) // CHANNELS),
    )
