"""GPT-2: learned positions, layernorm, GELU, biases; projections are stored (in, out)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from training.huggingface.entries import Entry, Read, derived, linear, same, tied, transposed
from training.huggingface.layouts import Json, expect, lookup, require
from training.models.transformer import Config

MODEL = "transformer"
ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer."
MAY_LACK = ("lm_head.",)
OTHER_NAMES: Mapping[str, str] = {}

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
"""Theirs to ours; the first of a kind is written."""
DEFAULTS = {
    "n_positions": 1024,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
"""What a config.json may leave out."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that GPT-2 does not have."""
    obstacles = require(config, positions="learned", norm="layernorm")
    if config.activation == "swiglu":
        obstacles.append("model.activation=swiglu (needs gelu_tanh or gelu)")
    obstacles += require(config, num_kv_heads=config.num_heads)
    if config.num_heads * config.head_dim != config.d_model:
        obstacles.append(f"model.head_dim={config.head_dim} (needs d_model / num_heads)")
    return obstacles


def entries(config: Config) -> Iterator[Entry]:
    """All weights; where ours has no biases, theirs are 0."""
    yield same("embedding.weight", "transformer.wte.weight")
    yield same("positions.table.weight", "transformer.wpe.weight")
    for layer in range(config.num_layers):
        yield from _block(config, f"blocks.{layer}", f"transformer.h.{layer}")
    yield from _norm(config, "norm", "transformer.ln_f")
    if config.tie_embeddings:
        yield tied("head.weight", "transformer.wte.weight")
    else:
        yield same("head.weight", "lm_head.weight")


def write_config(config: Config) -> Json:
    """The model's part of config.json."""
    return {
        "model_type": "gpt2",
        "architectures": [ARCHITECTURE],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": {own: name for name, own in reversed(ACTIVATIONS.items())}[
            config.activation
        ],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_epsilon,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`; biases that are all 0 are none."""
    tree = {**DEFAULTS, **tree}
    expect(tree, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    expect(tree, add_cross_attention=False)
    section = {
        "vocab_size": tree["vocab_size"],
        "d_model": tree["n_embd"],
        "num_layers": tree["n_layer"],
        "num_heads": tree["n_head"],
        "d_ff": tree["n_inner"] or 4 * tree["n_embd"],
        "max_positions": tree["n_positions"],
        "positions": "learned",
        "norm": "layernorm",
        "activation": lookup(tree, "activation_function", ACTIVATIONS),
        "tie_embeddings": tree["tie_word_embeddings"],
        "norm_epsilon": tree["layer_norm_epsilon"],
    }
    return section | {"bias": _has_biases(Config(**section), read)}


def _has_biases(config: Config, read: Read) -> bool:
    """Whether any bias is not 0."""
    names = (name for entry in entries(config) for name in entry.theirs if name.endswith(".bias"))
    return any(bool(read(name).any()) for name in names)


def _block(config: Config, ours: str, theirs: str) -> Iterator[Entry]:
    yield from _norm(config, f"{ours}.attention_norm", f"{theirs}.ln_1")
    width = config.d_model
    yield from _projection(
        config, f"{ours}.attention.query_key_value", f"{theirs}.attn.c_attn", 3 * width
    )
    yield from _projection(config, f"{ours}.attention.output", f"{theirs}.attn.c_proj", width)
    yield from _norm(config, f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
    yield from _projection(config, f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", config.d_ff)
    yield from _projection(config, f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", width)


def _norm(config: Config, ours: str, theirs: str) -> Iterator[Entry]:
    if config.bias:
        yield from linear(ours, theirs)
    else:
        yield same(f"{ours}.weight", f"{theirs}.weight")
        yield derived(f"{theirs}.bias", torch.zeros(config.d_model))


def _projection(config: Config, ours: str, theirs: str, num_out: int) -> Iterator[Entry]:
    yield transposed(f"{ours}.weight", f"{theirs}.weight")
    if config.bias:
        yield same(f"{ours}.bias", f"{theirs}.bias")
    else:
        yield derived(f"{theirs}.bias", torch.zeros(num_out))
