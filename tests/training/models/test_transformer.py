"""The decoder Transformer: exact attention, causality, documents, cache, precision and sizes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.layers.attention import Attention, Cache, Heads, rotate
from training.layers.document_attention import document_mask, flat_boundaries
from training.layers.positions import position_angles
from training.models.transformer import Config, Model, num_parameters
from training.tasks.causal_lm import document_layout

TINY = Config(vocab_size=23, d_model=16, num_layers=2, num_heads=4, max_positions=12)
LLAMA_PARTS = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
LLAMA = dataclasses.replace(TINY, num_kv_heads=2, d_ff=0, **LLAMA_PARTS)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5, 5, 5]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 7]])


def tokens(num: int = 8, *, rows: int = 2) -> Tensor:
    return torch.randint(23, (rows, num), generator=torch.Generator().manual_seed(num))


def model(config: Config) -> Model:
    torch.manual_seed(0)
    return Model(config).eval()


def exact_attention(layer: Attention, x: Tensor, *, sees: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v, head by head, position by position; sees (B, T, T)."""
    num_heads, num_kv_heads, _ = layer.groups
    k_dim = layer.head_dim
    qkv = x @ layer.query_key_value.weight.T + layer.query_key_value.bias
    q, k, v = qkv.split([g * k_dim for g in layer.groups], dim=-1)
    columns = []
    for head in range(num_heads):
        group = head // (num_heads // num_kv_heads)
        mine = slice(head * k_dim, (head + 1) * k_dim)
        theirs = slice(group * k_dim, (group + 1) * k_dim)
        scores = torch.einsum("bqk,bsk->bqs", q[..., mine], k[..., theirs]) / math.sqrt(k_dim)
        weights = torch.exp(scores) * sees
        weights = weights / weights.sum(-1, keepdim=True)
        columns.append(torch.einsum("bqs,bsk->bqk", weights, v[..., theirs]))
    return torch.cat(columns, -1) @ layer.output.weight.T + layer.output.bias


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_the_exact_formula(num_kv_heads, masked):
    torch.manual_seed(0)
    layer = Attention(
        16,
        Heads(4, num_kv_heads, 6),
        causal=True,
        bias=True,
        dropout=0.0,
        stds=(0.3, 0.3),
    ).double()
    x = torch.randn(2, 8, 16, dtype=torch.float64, requires_grad=True)
    causal = torch.ones(8, 8, dtype=torch.bool).tril().expand(2, 8, 8)
    same = DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :]
    sees = causal & same if masked else causal
    ours = layer(x, None, document_mask(DOCUMENTS) if masked else None, None)
    exact = exact_attention(layer, x, sees=sees)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-12)
    parameters = [x, *layer.parameters()]
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), parameters),
        torch.autograd.grad((exact * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_document_mask_is_causal_and_inside_documents():
    mask = document_mask(torch.tensor([[3, 3, 4]]))
    assert mask.tolist() == [[[[True, False, False], [True, True, False], [False, False, True]]]]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_a_packed_document_has_the_logits_of_the_document_alone(positions):
    config = dataclasses.replace(LLAMA, positions=positions, init_std=0.3)
    packed = model(config)(tokens(), positions=POSITIONS, documents=DOCUMENTS)
    for start, stop in [(0, 3), (3, 7), (7, 8)]:
        alone = model(config)(tokens()[:1, start:stop])
        torch.testing.assert_close(packed[:1, start:stop], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[1:], model(config)(tokens()[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, LLAMA])
def test_no_token_sees_a_later_one_and_each_sees_all_before(config):
    network = model(dataclasses.replace(config, init_std=0.3))
    before = network(tokens())
    for changed in range(8):
        other = tokens()
        other[:, changed] = (other[:, changed] + 1) % 23
        moved = (network(other) - before).abs().amax(-1) > 1e-6  # (B, T)
        assert moved.tolist() == [[t >= changed for t in range(8)]] * 2


def test_rotary_attention_depends_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 5, 8, dtype=torch.float64)

    def scores(shift: int) -> Tensor:
        angles = position_angles(torch.arange(5) + shift, 8, theta=100.0).double()
        rotation = torch.stack((angles.cos(), angles.sin()))
        return rotate(q, rotation) @ rotate(k, rotation).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(3), rtol=1e-5, atol=1e-5)
    angles = position_angles(torch.arange(5), 8, theta=100.0)
    rotation = torch.stack((angles.cos(), angles.sin())).double()
    torch.testing.assert_close(rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))


def test_angles_are_position_times_wavelength_even_where_bf16_has_no_such_number():
    angles = position_angles(torch.tensor([0, 256, 257]), 4, theta=10_000.0)
    assert angles.dtype == torch.float32
    torch.testing.assert_close(angles, torch.tensor([[0, 0], [256, 2.56], [257, 2.57]]))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_bf16_stays_near_fp32_at_far_positions(positions):
    config = dataclasses.replace(TINY, positions=positions, max_positions=600, init_std=0.2)
    exact = model(config)(tokens(600, rows=1))
    rounded = model(config).bfloat16()(tokens(600, rows=1))
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.03  # bf16 has 8 bits; positions rounded to bf16 give 0.3 and more
    assert list(model(config).buffers()) == []


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("config", [TINY, LLAMA])
def test_token_by_token_through_caches_gives_the_same_logits(config, positions):
    network = model(dataclasses.replace(config, positions=positions, init_std=0.3))
    caches = network.new_caches()
    parts = [network.features(tokens()[:, :3], caches=caches)]
    parts += [network.features(tokens()[:, t : t + 1], caches=caches) for t in range(3, 8)]
    torch.testing.assert_close(
        network.logits(torch.cat(parts, 1)), network(tokens()), rtol=1e-5, atol=1e-5
    )
    assert [cache.length for cache in caches] == [8, 8]


def test_a_filled_cache_refuses_several_tokens_at_once():
    cache = Cache()
    cache.extend(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    with pytest.raises(AssertionError, match="token by token"):
        cache.extend(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))


GPT2 = Config(vocab_size=50257)
LLAMA_7B = Config(
    vocab_size=32000, d_model=4096, num_layers=32, num_heads=32, d_ff=11008, **LLAMA_PARTS
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2, 124_439_808),  # as published
        (
            dataclasses.replace(
                GPT2, d_model=1600, num_layers=48, num_heads=25, head_dim=0, d_ff=0, num_kv_heads=0
            ),
            1_557_611_200,
        ),
        (LLAMA_7B, 6_738_415_616),  # Llama-2-7B
        (
            dataclasses.replace(LLAMA_7B, vocab_size=128256, num_kv_heads=8, d_ff=14336),
            8_030_261_248,  # Llama-3-8B
        ),
        (
            dataclasses.replace(
                LLAMA_7B, d_model=2048, num_layers=22, num_kv_heads=4, head_dim=64, d_ff=5632
            ),
            1_100_048_384,  # TinyLlama
        ),
        (dataclasses.replace(TINY, positions="sinusoidal"), 23 * 16 + 2 * 3280 + 32),
    ],
)
def test_number_of_parameters(config, expected):
    assert num_parameters(config) == expected


def test_tied_embeddings_are_one_parameter():
    network = model(TINY)
    assert network.head.weight is network.embedding.weight
    untied = model(dataclasses.replace(TINY, tie_embeddings=False))
    assert untied.head.weight is not untied.embedding.weight
    assert num_parameters(untied.config) - num_parameters(network.config) == 23 * 16


def test_initial_weights_have_the_asked_spread():
    config = dataclasses.replace(LLAMA, d_model=128, head_dim=0, d_ff=0, num_layers=8, bias=True)
    for name, parameter in model(config).named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_dropout_acts_in_training_alone():
    network = model(dataclasses.replace(TINY, dropout=0.5, init_std=0.3))
    assert torch.equal(network(tokens()), network(tokens()))
    torch.testing.assert_close(
        network(tokens()), model(dataclasses.replace(TINY, init_std=0.3))(tokens())
    )
    network.train()
    assert not torch.equal(network(tokens()), network(tokens()))


def test_every_parameter_belongs_to_a_module_that_is_called():
    network = model(dataclasses.replace(TINY, tie_embeddings=False))
    called = set()
    for module in network.modules():
        module.register_forward_hook(lambda module, *_: called.add(module))
    network(tokens())
    reached = {id(p) for module in called for p in module.parameters(recurse=False)}
    assert reached == {id(p) for p in network.parameters()}


def test_a_sequence_beyond_max_positions_is_refused():
    with pytest.raises(ValueError, match="13 tokens is longer than the model's max_positions 12"):
        model(LLAMA)(tokens(13))
    caches = model(LLAMA).new_caches()
    network = model(LLAMA)
    network.features(tokens(12), caches=caches)
    with pytest.raises(ValueError, match="13 tokens"):
        network.features(tokens(1), caches=caches)


def test_zeros_are_derived_and_told():
    config = Config(vocab_size=9, d_model=96, num_heads=6)
    assert (config.num_kv_heads, config.head_dim, config.d_ff) == (6, 16, 384)
    assert Config(vocab_size=9, d_model=96, num_heads=6, activation="swiglu").d_ff == 256
    assert Config(vocab_size=9, d_model=100, num_heads=6, head_dim=8).head_dim == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"num_layers": -1}, "num_layers is -1; it must be at least 1"),
        ({"d_ff": -4}, "d_ff is -4; it must be at least 0"),
        ({"num_kv_heads": 3}, "num_heads 4 is no multiple of num_kv_heads 3"),
        ({"d_model": 18, "head_dim": 0}, "d_model 18 is no multiple of num_heads 4"),
        ({"positions": "rotary", "head_dim": 5}, "head_dim 5 is odd"),
        ({"positions": "sinusoidal", "d_model": 15}, "d_model 15 is odd"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0; it must be above 0"),
        ({"init_std": math.nan}, "init_std is nan"),
        ({"rope_theta": math.inf}, "rope_theta is inf"),
    ],
)
def test_contradictions_are_named_with_their_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.gpu
def test_masks_over_shared_heads_take_no_memory_of_all_pairs():
    length = 4096
    model = Model(
        Config(
            vocab_size=8,
            d_model=64,
            num_layers=1,
            num_heads=8,
            num_kv_heads=2,
            max_positions=length,
        )
    )
    model = model.cuda().bfloat16()
    tokens = torch.zeros(1, length, dtype=torch.long, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model.features(tokens, documents=torch.zeros_like(tokens)).sum().backward()
    all_pairs = 8 * length**2 * 4  # bytes of the weights of all heads, in fp32
    assert torch.cuda.max_memory_allocated() - before < all_pairs


def test_boundaries_run_through_all_rows():
    begins = torch.tensor([[0, 2, 5, 7], [0, 7, 7, 7], [0, 1, 2, 6]], dtype=torch.int32)
    flat = flat_boundaries(begins, length=7)
    assert flat.tolist() == [0, 2, 5, 7, 7, 14, 14, 14, 14, 15, 16, 20, 21]
    assert flat.dtype == torch.int32


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("num_kv_heads", [8, 2])
def test_the_kernel_that_goes_by_boundaries_equals_a_mask(positions, num_kv_heads):
    """In bf16, where both round: as far from the mask in fp32 as the mask in bf16 is."""
    torch.manual_seed(0)
    shape = {"d_model": 256, "num_layers": 2, "num_heads": 8, "num_kv_heads": num_kv_heads}
    config = Config(vocab_size=64, **shape, positions=positions, max_positions=96, init_std=0.1)
    model = Model(config).cuda()
    tokens = torch.randint(64, (3, 96), device="cuda")
    starts = [np.array([5, 50]), np.array([1]), np.array([], int)]
    layout = {
        name: torch.from_numpy(one).cuda() for name, one in document_layout(starts, 96).items()
    }

    def run(dtype, **layout):
        model.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            features = model.features(tokens, **layout)
        features.float().square().sum().backward()
        return [
            features,
            *(one.grad for name, one in model.named_parameters() if one.grad is not None),
        ]

    masked = {name: one for name, one in layout.items() if name != "document_begins"}
    exact = run(torch.float32, **layout)
    for ours, mask, truth in zip(
        run(torch.bfloat16, **layout), run(torch.bfloat16, **masked), exact, strict=True
    ):
        scale = truth.abs().max()
        assert (ours - truth).abs().max() <= 2 * (mask - truth).abs().max() + 1e-3 * scale
    assert not torch.equal(run(torch.bfloat16, **layout)[0], run(torch.bfloat16, **masked)[0])
