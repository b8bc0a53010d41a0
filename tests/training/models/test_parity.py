"""The same weights give the same logits as Hugging Face transformers' GPT-2 and Llama."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from training.huggingface.initial import read_weights
from training.models.transformer import Config, Model, num_parameters


def assert_same_logits(config, theirs, folder, *, num_tokens, roughen) -> None:
    """Our model with their weights, read from the folder that they write, on random tokens."""
    roughen(theirs)
    theirs.save_pretrained(folder)
    ours = Model(config)
    ours.load_state_dict(read_weights(folder, config).weights)
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
def test_gpt2(
    d_model, num_layers, num_heads, num_tokens, activation, theirs_activation, roughen, tmp_path
):
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
    assert_same_logits(config, theirs, tmp_path, num_tokens=num_tokens, roughen=roughen)


@pytest.mark.parametrize(
    ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "tied"),
    [(32, 2, 4, 4, 8, False), (32, 2, 4, 2, 8, False), (48, 3, 6, 1, 16, True)],
)
def test_llama(d_model, num_layers, num_heads, num_kv_heads, head_dim, tied, roughen, tmp_path):
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
    assert_same_logits(config, theirs, tmp_path, num_tokens=64, roughen=roughen)


def test_gpt2_of_124m_has_the_same_number_of_parameters():
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config())
    assert num_parameters(Config(vocab_size=50257)) == theirs.num_parameters() == 124_439_808
