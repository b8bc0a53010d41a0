"""The encoder-decoder: the logits of transformers' T5, and what its parts see."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from training.huggingface.initial import read_weights
from training.layers.attention import attention_weights
from training.models.encoder_decoder import Config, Model, adapt

SIZES = {"vocab_size": 101, "d_model": 32, "num_layers": 2, "num_heads": 4}


def random_tokens(*shape, seed=2):
    return torch.randint(101, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize(
    ("theirs_keys", "keys"),
    [
        ({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, {}),
        (
            {"feed_forward_proj": "relu", "tie_word_embeddings": True},
            {"activation": "relu", "tie_embeddings": True},
        ),
        (
            {
                "feed_forward_proj": "gated-silu",
                "tie_word_embeddings": False,
                "num_decoder_layers": 3,
                "d_kv": 16,
                "relative_attention_num_buckets": 16,
                "relative_attention_max_distance": 40,
            },
            {
                "activation": "swiglu",
                "num_decoder_layers": 3,
                "head_dim": 16,
                "num_buckets": 16,
                "max_distance": 40,
            },
        ),
    ],
)
@pytest.mark.parametrize(("num_source", "num_tokens"), [(7, 5), (200, 150), (1, 1)])
def test_the_logits_of_t5(theirs_keys, keys, num_source, num_tokens, roughen, tmp_path):
    torch.manual_seed(0)
    config = Config(**SIZES, d_ff=72, **keys)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 72, "num_layers": 2, "num_heads": 4}
    theirs = T5ForConditionalGeneration(T5Config(vocab_size=101, **(sizes | theirs_keys))).eval()
    if not config.tie_embeddings:  # version 5 ties what it makes, not what it loads
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(101, 32) * 0.2)
    roughen(theirs)
    theirs.save_pretrained(tmp_path)
    ours = Model(config).eval()
    ours.load_state_dict(read_weights(tmp_path, config).weights)
    source, tokens = random_tokens(2, num_source), random_tokens(2, num_tokens, seed=3)
    expected = theirs(input_ids=source, decoder_input_ids=tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(source, tokens), expected, rtol=1e-5, atol=1e-5)


def test_t5_base_of_1_1_has_the_same_number_of_parameters():
    """As published: google/t5-v1_1-base."""
    keys = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
    with torch.device("meta"):
        theirs = T5ForConditionalGeneration(
            T5Config(
                vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **keys
            )
        )
        ours = Model(Config(vocab_size=32128))
    own, tied = (sum(one.numel() for one in model.parameters()) for model in (ours, theirs))
    assert own == tied + 32128 * 768 == 247_577_856  # version 5 ties the head of what it makes


@pytest.fixture(params=["relative", "rotary"])
def model(request):
    torch.manual_seed(0)
    return Model(Config(**SIZES, positions=request.param)).eval()


@torch.no_grad()
def test_the_target_looks_back_alone_and_the_source_both_ways(model):
    source, tokens = random_tokens(1, 9), random_tokens(1, 8, seed=3)
    logits = model(source, tokens)
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 101
    same = (model(source, changed) == logits).all(dim=2)[0]
    assert same.tolist() == [True] * 5 + [False] * 3
    encoded, changed = model.encode(source), source.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 101
    assert (model.encode(changed) != encoded).any(dim=2).all()


@torch.no_grad()
def test_documents_see_themselves_alone(model):
    """Two documents in one row give what each gives by itself: distances alone count."""
    sources = [random_tokens(1, 7), random_tokens(1, 4, seed=4)]
    targets = [random_tokens(1, 5, seed=5), random_tokens(1, 6, seed=6)]
    apart = [model(*pair) for pair in zip(sources, targets, strict=True)]
    of_source, of_target = torch.tensor([[0] * 7 + [1] * 4]), torch.tensor([[0] * 5 + [1] * 6])
    encoded = model.encode(torch.cat(sources, dim=1), documents=of_source)
    features = model.decode(
        torch.cat(targets, dim=1), encoded, documents=of_target, source_documents=of_source
    )
    torch.testing.assert_close(model.logits(features), torch.cat(apart, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_caches_continue_a_target_token_by_token(model):
    source, tokens = random_tokens(2, 9), random_tokens(2, 8, seed=3)
    encoded, caches = model.encode(source), model.new_caches()
    parts = [model.decode(tokens[:, :3], encoded, caches=caches)]
    parts += [model.decode(tokens[:, i : i + 1], encoded, caches=caches) for i in range(3, 8)]
    torch.testing.assert_close(
        model.logits(torch.cat(parts, dim=1)), model(source, tokens), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_weights_of_attention_count_the_bias(model):
    """What `training.attention` shows is what attention computes."""
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.randn(1, 4, 6, 6).masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -1e9)
    weights = attention_weights(q, k, mask=mask, is_causal=False)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(weights @ v, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_head_that_was_tied_may_go_on_by_itself():
    tied = Model(Config(**SIZES, tie_embeddings=True)).eval()
    untied = Model(Config(**SIZES)).eval()
    untied.load_state_dict(adapt(dict(tied.state_dict()), untied.config))
    source, tokens = random_tokens(2, 9), random_tokens(2, 8, seed=3)
    torch.testing.assert_close(untied(source, tokens), tied(source, tokens), rtol=1e-5, atol=1e-5)
    assert adapt(dict(untied.state_dict()), untied.config).keys() == untied.state_dict().keys()


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_initial_logits_are_of_about_1(tied):
    torch.manual_seed(0)
    config = Config(vocab_size=500, d_model=256, num_layers=3, num_heads=4, tie_embeddings=tied)
    logits = Model(config)(random_tokens(2, 40), random_tokens(2, 30, seed=3))
    assert 0.5 < logits.std() < 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_heads": 5}, "d_model 32 is no multiple of num_heads 5"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"num_buckets": 30}, "num_buckets is 30; it must be a multiple of 4"),
        ({"max_distance": 16}, "max_distance is 16; it must be above num_buckets / 2, 16"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"positions": "rotary", "head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_configs_without_a_meaning_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Config(**(SIZES | keys))
