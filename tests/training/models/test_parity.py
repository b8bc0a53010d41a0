"""The same weights give the same logits as Hugging Face transformers' GPT-2 and Llama."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from training.models.transformer import Config, Model, num_parameters


def from_gpt2(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """GPT-2's weights under our names; its projections are stored (in, out), ours (out, in)."""
    state = theirs.transformer.state_dict()
    result = {
        "embedding.weight": state["wte.weight"],
        "head.weight": theirs.lm_head.weight,
        "positions.table.weight": state["wpe.weight"],
    }
    names = {"norm": "ln_f"}
    for layer in range(theirs.config.n_layer):
        names |= {
            f"blocks.{layer}.attention_norm": f"h.{layer}.ln_1",
            f"blocks.{layer}.attention.query_key_value": f"h.{layer}.attn.c_attn",
            f"blocks.{layer}.attention.output": f"h.{layer}.attn.c_proj",
            f"blocks.{layer}.feed_forward_norm": f"h.{layer}.ln_2",
            f"blocks.{layer}.feed_forward.up": f"h.{layer}.mlp.c_fc",
            f"blocks.{layer}.feed_forward.down": f"h.{layer}.mlp.c_proj",
        }
    for our_name, name in names.items():
        weight = state[f"{name}.weight"]
        result[f"{our_name}.weight"] = weight.T if weight.ndim == 2 else weight
        result[f"{our_name}.bias"] = state[f"{name}.bias"]
    return result


def from_llama(theirs: LlamaForCausalLM) -> dict[str, Tensor]:
    """Llama's weights under our names; queries, keys and values become one projection."""
    state = theirs.model.state_dict()
    result = {
        "embedding.weight": state["embed_tokens.weight"],
        "head.weight": theirs.lm_head.weight,
        "norm.weight": state["norm.weight"],
    }
    for layer in range(theirs.config.num_hidden_layers):
        ours, name = f"blocks.{layer}", f"layers.{layer}"
        parts = [state[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv"]
        result |= {
            f"{ours}.attention_norm.weight": state[f"{name}.input_layernorm.weight"],
            f"{ours}.attention.query_key_value.weight": torch.cat(parts),
            f"{ours}.attention.output.weight": state[f"{name}.self_attn.o_proj.weight"],
            f"{ours}.feed_forward_norm.weight": state[f"{name}.post_attention_layernorm.weight"],
        }
        for part in ("gate", "up", "down"):
            weight = state[f"{name}.mlp.{part}_proj.weight"]
            result[f"{ours}.feed_forward.{part}.weight"] = weight
    return result


def assert_same_logits(config, theirs, renamed, *, num_tokens, roughen) -> None:
    """Our model with their weights against theirs, on random tokens."""
    roughen(theirs)
    ours = Model(config)
    ours.load_state_dict(renamed(theirs))
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(config.vocab_size, (2, num_tokens), generator=generator)
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
        actual = ours.eval()(tokens)
    assert expected.std() > 0.3
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "num_heads", "num_tokens"),
    [(32, 2, 4, 17), (48, 3, 3, 64), (24, 1, 1, 1)],
)
@pytest.mark.parametrize(
    ("activation", "theirs_activation"), [("gelu_tanh", "gelu_new"), ("gelu", "gelu")]
)
def test_gpt2(d_model, num_layers, num_heads, num_tokens, activation, theirs_activation, roughen):
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=101,
            n_positions=64,
            n_embd=d_model,
            n_layer=num_layers,
            n_head=num_heads,
            activation_function=theirs_activation,
        )
    )
    config = Config(
        vocab_size=101,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=64,
        activation=activation,
    )
    assert_same_logits(config, theirs, from_gpt2, num_tokens=num_tokens, roughen=roughen)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "tied"),
    [(32, 2, 4, 4, 8, False), (32, 2, 4, 2, 8, False), (48, 3, 6, 1, 16, True)],
)
def test_llama(d_model, num_layers, num_heads, num_kv_heads, head_dim, tied, roughen):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=101,
            hidden_size=d_model,
            intermediate_size=72,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            tie_word_embeddings=tied,
        )
    )
    config = Config(
        vocab_size=101,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        d_ff=72,
        max_positions=64,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        tie_embeddings=tied,
        bias=False,
        rope_theta=500_000.0,
    )
    assert_same_logits(config, theirs, from_llama, num_tokens=64, roughen=roughen)


def test_gpt2_of_124m_has_the_same_number_of_parameters():
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config())
    assert num_parameters(Config(vocab_size=50257)) == theirs.num_parameters() == 124_439_808
