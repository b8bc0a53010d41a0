"""Llama: rotary positions, rmsnorm, SwiGLU, shared keys and values, tied or untied."""

from collections.abc import Iterator, Mapping
from typing import Any

from training.huggingface.entries import Entry, Read, divided, same, tied
from training.huggingface.layouts import Json, expect, require
from training.models.transformer import Config

MODEL = "transformer"
ARCHITECTURE = "LlamaForCausalLM"
PREFIX = "model."
MAY_LACK = ("lm_head.",)
OTHER_NAMES: Mapping[str, str] = {}

DEFAULTS: Json = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""What a config.json may leave out."""
ROPE_THETA = 10_000.0
"""Where it says nothing."""


def find_obstacles(config: Config) -> list[str]:
    """Parts that Llama does not have."""
    obstacles = require(config, positions="rotary", norm="rmsnorm", activation="swiglu")
    if config.d_model % config.num_heads:
        heads = f"a divisor of model.d_model={config.d_model}"
        obstacles.append(f"model.num_heads={config.num_heads} (needs {heads})")
    return obstacles


def entries(config: Config) -> Iterator[Entry]:
    """All weights; the projection to queries, keys and values is three there."""
    yield same("embedding.weight", "model.embed_tokens.weight")
    for layer in range(config.num_layers):
        for part in ("weight", "bias") if config.bias else ("weight",):
            yield from _projections(config, f"blocks.{layer}", f"model.layers.{layer}", part)
        yield from _norms(f"blocks.{layer}", f"model.layers.{layer}")
    yield same("norm.weight", "model.norm.weight")
    if config.tie_embeddings:
        yield tied("head.weight", "model.embed_tokens.weight")
    else:
        yield same("head.weight", "lm_head.weight")


def write_config(config: Config) -> Json:
    """The model's part of config.json; `rope_theta` is read by transformers 4, the other by 5."""
    return {
        "model_type": "llama",
        "architectures": [ARCHITECTURE],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropout,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_config(tree: Mapping[str, Any], read: Read) -> Json:
    """The section `model`."""
    del read
    tree = {**DEFAULTS, **tree}
    expect(tree, hidden_act="silu")
    expect(tree, mlp_bias=tree["attention_bias"])
    return {
        "vocab_size": tree["vocab_size"],
        "d_model": tree["hidden_size"],
        "num_layers": tree["num_hidden_layers"],
        "num_heads": tree["num_attention_heads"],
        "num_kv_heads": tree["num_key_value_heads"] or tree["num_attention_heads"],
        "head_dim": tree["head_dim"] or tree["hidden_size"] // tree["num_attention_heads"],
        "d_ff": tree["intermediate_size"],
        "max_positions": tree["max_position_embeddings"],
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "tie_embeddings": tree["tie_word_embeddings"],
        "bias": tree["attention_bias"],
        "norm_epsilon": tree["rms_norm_eps"],
        "rope_theta": _rope_theta(tree),
    }


def _projections(config: Config, ours: str, theirs: str, part: str) -> Iterator[Entry]:
    groups = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    yield divided(
        f"{ours}.attention.query_key_value.{part}",
        [f"{theirs}.self_attn.{one}_proj.{part}" for one in "qkv"],
        [group * config.head_dim for group in groups],
    )
    yield same(f"{ours}.attention.output.{part}", f"{theirs}.self_attn.o_proj.{part}")
    for one in ("gate", "up", "down"):
        yield same(f"{ours}.feed_forward.{one}.{part}", f"{theirs}.mlp.{one}_proj.{part}")


def _norms(ours: str, theirs: str) -> Iterator[Entry]:
    yield same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight")
    yield same(f"{ours}.feed_forward_norm.weight", f"{theirs}.post_attention_layernorm.weight")


def _rope_theta(tree: Mapping[str, Any]) -> float:
    """Of plain rotary positions; they are under `rope_scaling` in transformers 4."""
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rotary positions are scaled ({kind}); only plain ones are read")
    return float(rope.get("rope_theta", tree.get("rope_theta", ROPE_THETA)))
