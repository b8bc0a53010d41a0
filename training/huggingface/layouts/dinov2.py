"""A ViT with LayerScale, or a classifier on the mean of the patches: Dinov2 there.

Its classifier reads the class token and the mean, side by side; ours reads one of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from training.huggingface import image_encoder
from training.huggingface.entries import Entry, Read, derived, same
from training.huggingface.image_encoder import BlockNames
from training.huggingface.layouts import Json, expect, require
from training.models.vit import Config

MODEL = "vit"
ARCHITECTURE = "Dinov2ForImageClassification"
PREFIX = "dinov2."
MASK_TOKEN = "dinov2.embeddings.mask_token"
CLASSIFIER = "classifier.weight"
MAY_LACK = ("classifier.", MASK_TOKEN)
OTHER_NAMES: Mapping[str, str] = {}

NAMES = BlockNames("norm1", "norm2", "mlp.fc1", "mlp.fc2")
SCALES = {"attention_join": "layer_scale1", "feed_forward_join": "layer_scale2"}
DEFAULTS: Json = {
    "patch_size": 14,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "num_hidden_layers": 12,
    "hidden_size": 768,
}
"""What a config.json may leave out."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that it does not have."""
    obstacles = require(config, class_token=True, qk_norm=False)
    if config.d_ff % config.d_model:
        multiple = f"a multiple of model.d_model={config.d_model}"
        obstacles.append(f"model.d_ff={config.d_ff} (needs {multiple})")
    return obstacles


def entries(config: Config) -> Iterator[Entry]:
    """All weights; where ours has no LayerScale, theirs is 1."""
    yield from image_encoder.encoder_entries(config, "dinov2", NAMES)
    yield derived(MASK_TOKEN, torch.zeros(1, config.d_model))
    for layer in range(config.num_layers):
        for own, name in SCALES.items():
            scale = f"dinov2.encoder.layer.{layer}.{name}.lambda1"
            if config.layer_scale:
                yield same(f"encoder.blocks.{layer}.{own}.scale.weight", scale)
            else:
                yield derived(scale, torch.ones(config.d_model))
    yield _classifier(config)
    yield same("head.bias", "classifier.bias")


def write_config(config: Config) -> Json:
    """The model's part of config.json; the names of classes are the dataset's."""
    return {
        "model_type": "dinov2",
        "architectures": [ARCHITECTURE],
        **image_encoder.write_encoder_config(config),
        "mlp_ratio": config.d_ff // config.d_model,
        "layerscale_value": config.layer_scale or 1.0,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`."""
    tree = {**DEFAULTS, **tree}
    expect(tree, use_swiglu_ffn=False)
    scales = [
        read(f"dinov2.encoder.layer.{layer}.{name}.lambda1")
        for layer in range(tree["num_hidden_layers"])
        for name in SCALES.values()
    ]
    scaled = any(bool((scale != 1).any()) for scale in scales)
    return {
        "num_classes": image_encoder.read_num_classes(tree),
        **image_encoder.read_encoder_config(tree, read, "dinov2"),
        "d_ff": tree["hidden_size"] * tree["mlp_ratio"],
        "layer_scale": tree["layerscale_value"] if scaled else 0.0,
        "pooling": _pooling(read, tree["hidden_size"]),
    }


def _classifier(config: Config) -> Entry:
    """Weights (classes, D) here; there (classes, 2 D), zeros for what ours does not read."""
    first = config.pooling == "class_token"

    def out(own: Tensor) -> tuple[Tensor]:
        zeros = torch.zeros_like(own)
        return (torch.cat((own, zeros) if first else (zeros, own), dim=1),)

    return Entry(
        "head.weight", (CLASSIFIER,), out, lambda parts: parts[0].chunk(2, dim=1)[0 if first else 1]
    )


def _pooling(read: Read, width: int) -> str:
    """What a classifier reads.

    Raises:
        ValueError: both halves.
    """
    try:
        classifier = read(CLASSIFIER)
    except ValueError:  # a model without its head
        return "class_token"
    reads = [bool((half != 0).any()) for half in torch.split(classifier, width, dim=1)]
    if all(reads):
        raise ValueError(
            "its classifier reads the class token and the mean of the patches, ours one of them; "
            "take a folder of the model without its head"
        )
    return "mean" if reads[-1] else "class_token"
