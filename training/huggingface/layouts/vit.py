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

NUM_CLASSES = 2
"""Where a config.json says nothing."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that it does not have."""
    return image_encoder.find_obstacles(config) + require(config, pooling="class_token")


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
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`."""
    num_classes = len(tree.get("id2label") or ()) or tree.get("num_labels", NUM_CLASSES)
    return {
        "num_classes": num_classes,
        **image_encoder.read_encoder_config(tree, read(image_encoder.TABLE)),
        "pooling": "class_token",
    }
