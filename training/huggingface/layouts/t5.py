"""T5 and T5 1.1: relative positions, rmsnorm, no biases; a plain or a gated feed-forward.

Scores of T5 are not divided by sqrt(head_dim), as ours are: its queries are smaller by so much.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.huggingface.entries import Entry, Read, divided, same, tied
from training.huggingface.layouts import Json, lookup, require
from training.models.encoder_decoder import Config

MODEL = "encoder_decoder"
ARCHITECTURE = "T5ForConditionalGeneration"
PREFIX = ""
MAY_LACK: tuple[str, ...] = ()
OTHER_NAMES: Mapping[str, str] = {
    "encoder.embed_tokens.": "shared.",
    "decoder.embed_tokens.": "shared.",
}

DEFAULTS: Json = {
    "num_decoder_layers": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": True,
}
"""What a config.json may leave out."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
"""By their name; gated-gelu is the approximation there, too."""


def find_obstacles(config: Config) -> list[str]:
    """What T5 does not have."""
    obstacles = require(config, positions="relative")
    if not math.log(config.head_dim, 4).is_integer():
        needed = "a power of 4, whose root divides exactly"
        obstacles.append(f"model.head_dim={config.head_dim} (needs {needed})")
    return obstacles


def entries(config: Config) -> Iterator[Entry]:
    """All weights; the relative positions of a stack lie in its first block."""
    yield same("embedding.weight", "shared.weight")
    stacks = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    for stack, num_layers in stacks.items():
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield same(f"{stack}.positions.table.weight", f"{stack}.{bias}")
        for number in range(num_layers):
            ours, theirs = f"{stack}.blocks.{number}", f"{stack}.block.{number}.layer"
            yield from _attention(config, f"{ours}.attention", f"{theirs}.0.SelfAttention")
            yield same(f"{ours}.attention_norm.weight", f"{theirs}.0.layer_norm.weight")
            if stack == "decoder":
                yield from _cross_attention(config, ours, f"{theirs}.1")
            last = f"{theirs}.{1 + (stack == 'decoder')}"
            yield from _feed_forward(config, f"{ours}.feed_forward", f"{last}.DenseReluDense")
            yield same(f"{ours}.feed_forward_norm.weight", f"{last}.layer_norm.weight")
        yield same(f"{stack}.norm.weight", f"{stack}.final_layer_norm.weight")
    if config.tie_embeddings:
        yield tied("head.weight", "shared.weight")
    else:
        yield same("head.weight", "lm_head.weight")


def write_config(config: Config) -> Json:
    """The model's part of config.json; `scale_decoder_outputs` is read by transformers 5."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {
        "model_type": "t5",
        "architectures": [ARCHITECTURE],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": names[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.tie_embeddings,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`."""
    del read
    tree = {**DEFAULTS, **tree}
    scales = tree.get("scale_decoder_outputs", tree["tie_word_embeddings"])
    return {
        "vocab_size": tree["vocab_size"],
        "d_model": tree["d_model"],
        "num_layers": tree["num_layers"],
        "num_decoder_layers": tree["num_decoder_layers"] or tree["num_layers"],
        "num_heads": tree["num_heads"],
        "head_dim": tree["d_kv"],
        "d_ff": tree["d_ff"],
        "positions": "relative",
        "num_buckets": tree["relative_attention_num_buckets"],
        "max_distance": tree["relative_attention_max_distance"],
        "activation": lookup(tree, "feed_forward_proj", ACTIVATIONS),
        "tie_embeddings": scales,  # transformers 5 writes tie_word_embeddings in any case
        "norm_epsilon": tree["layer_norm_epsilon"],
    }


def _attention(config: Config, ours: str, theirs: str) -> Iterator[Entry]:
    width, root = config.num_heads * config.head_dim, config.head_dim**0.5
    names = tuple(f"{theirs}.{one}.weight" for one in "qkv")

    def out(own: Tensor) -> Sequence[Tensor]:
        q, k, v = torch.split(own, width)
        return q / root, k, v

    def back(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat((parts[0] * root, parts[1], parts[2]))

    yield Entry(f"{ours}.query_key_value.weight", names, out, back)
    yield same(f"{ours}.output.weight", f"{theirs}.o.weight")


def _cross_attention(config: Config, ours: str, theirs: str) -> Iterator[Entry]:
    width, root = config.num_heads * config.head_dim, config.head_dim**0.5
    there = f"{theirs}.EncDecAttention"
    yield Entry(
        f"{ours}.cross_attention.query.weight",
        (f"{there}.q.weight",),
        lambda own: (own / root,),
        lambda parts: parts[0] * root,
    )
    names = [f"{there}.{one}.weight" for one in "kv"]
    yield divided(f"{ours}.cross_attention.key_value.weight", names, [width, width])
    yield same(f"{ours}.cross_attention.output.weight", f"{there}.o.weight")
    yield same(f"{ours}.cross_norm.weight", f"{theirs}.layer_norm.weight")


def _feed_forward(config: Config, ours: str, theirs: str) -> Iterator[Entry]:
    ups = {"gate": "wi_0", "up": "wi_1"} if config.is_gated else {"up": "wi"}
    for one, there in (ups | {"down": "wo"}).items():
        yield same(f"{ours}.{one}.weight", f"{theirs}.{there}.weight")
