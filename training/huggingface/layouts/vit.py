"""ViT with a classifier on the class token."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.huggingface import image_encoder
from training.huggingface.entries import Entry, Read, linear
from training.huggingface.layouts import Json, require
from training.models.vit import Config

MODEL = "vit"
ARCHITECTURE = "ViTForImageClassification"
PREFIX = "vit."
MAY_LACK = ("classifier.",)
OTHER_NAMES: Mapping[str, str] = {}

DEFAULTS: Json = {"intermediate_size": 3072, "layer_norm_eps": 1e-12}
"""What a config.json may leave out."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that it does not have."""
    return require(config, class_token=True, pooling="class_token", qk_norm=False, layer_scale=0.0)


def entries(config: Config) -> Iterator[Entry]:
    """All weights."""
    yield from image_encoder.encoder_entries(config)
    yield from linear("head", "classifier")


def write_config(config: Config) -> Json:
    """The model's part of config.json; the names of classes are the dataset's."""
    return {
        "model_type": "vit",
        "architectures": [ARCHITECTURE],
        **image_encoder.write_encoder_config(config),
        "intermediate_size": config.d_ff,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`."""
    tree = {**DEFAULTS, **tree}
    return {
        "num_classes": image_encoder.read_num_classes(tree),
        **image_encoder.read_encoder_config(tree, read),
        "d_ff": tree["intermediate_size"],
        "layer_scale": 0.0,
        "pooling": "class_token",
    }
