"""Sampling: distributions after temperature, top-k and top-p; seeds; the cache; wrong values."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training.models.transformer import Config, Model
from training.sampling import generate, next_probabilities

PROBABILITIES = [0.1, 0.4, 0.05, 0.25, 0.2]
LOGITS = torch.tensor([PROBABILITIES]).log() + 3.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1e-30}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, [p * p / 0.275 for p in PROBABILITIES]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 3}, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
        ({"top_k": 9}, PROBABILITIES),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        ({"top_p": 0.94}, [0.1 / 0.95, 0.4 / 0.95, 0, 0.25 / 0.95, 0.2 / 0.95]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        # top-p counts the share of what top-k left: 0.4 / 0.85 = 0.47, and 0.65 / 0.85 = 0.76.
        ({"top_k": 3, "top_p": 0.46}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ],
)
def test_probabilities(settings, expected):
    both = torch.cat((LOGITS, LOGITS.flip(1)))
    actual = next_probabilities(both, **settings)
    wanted = torch.tensor([expected, expected[::-1]], dtype=torch.float32)
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-7)


def test_among_equals_the_lower_tokens_are_kept():
    kept = next_probabilities(torch.zeros(1, 4), top_k=2)
    assert kept.tolist() == [[0.5, 0.5, 0, 0]]


class Unigram(nn.Module):
    """Always the same distribution."""

    config = SimpleNamespace(max_positions=8)

    def new_caches(self):
        return []

    def features(self, tokens, *, caches):
        return tokens[..., None].float()

    def logits(self, features):
        return LOGITS.expand(features.shape[0], -1)


def test_sampled_frequencies_are_the_probabilities():
    sampled = generate(Unigram(), torch.zeros(2000, 1, dtype=torch.int64), num_tokens=10)
    counts = torch.bincount(sampled[:, 1:].flatten(), minlength=5) / 20_000
    # 20,000 draws: a standard deviation of at most 0.0035, five of them allowed.
    torch.testing.assert_close(counts, torch.tensor(PROBABILITIES), rtol=0, atol=0.018)


def model(positions="learned") -> Model:
    torch.manual_seed(0)
    shape = {"vocab_size": 19, "d_model": 16, "num_layers": 2, "num_heads": 2, "max_positions": 12}
    return Model(Config(**shape, positions=positions, init_std=0.4)).eval()


PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_greedy_tokens_are_those_of_the_whole_forward_pass(positions):
    network = model(positions)
    expected = PROMPT
    for _ in range(9):
        following = network(expected)[:, -1].argmax(1, keepdim=True)
        expected = torch.cat((expected, following), 1)
    actual = generate(network, PROMPT, num_tokens=9, temperature=0)
    assert actual.tolist() == expected.tolist()


def test_a_seed_is_a_text():
    first = generate(model(), PROMPT, num_tokens=9, seed=1)
    assert torch.equal(first[:, :3], PROMPT)
    assert torch.equal(first, generate(model(), PROMPT, num_tokens=9, seed=1))
    assert not torch.equal(first, generate(model(), PROMPT, num_tokens=9, seed=2))
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(first, generate(model(), PROMPT, num_tokens=9, seed=1))


def test_beyond_the_window_it_goes_on_behind_the_window_s_later_half():
    network = model()
    expected, context = PROMPT, PROMPT
    for _ in range(30):
        if context.shape[1] > 6:
            context = context[:, -3:]
        following = network(context)[:, -1].argmax(1, keepdim=True)
        expected, context = torch.cat((expected, following), 1), torch.cat((context, following), 1)
    actual = generate(network, PROMPT, num_tokens=30, temperature=0, max_positions=6)
    assert actual.tolist() == expected.tolist()


def test_of_a_long_prompt_the_last_window_is_read():
    prompt = torch.arange(15)[None]
    network = model()
    expected = network(prompt[:, -12:])[:, -1].argmax(1)
    assert generate(network, prompt, num_tokens=1, temperature=0)[:, -1].tolist() == (
        expected.tolist()
    )


def test_no_tokens_asked_gives_the_prompt():
    assert torch.equal(generate(model(), PROMPT, num_tokens=0), PROMPT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": -1}, "num_tokens is -1"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, f"seed is {2**64}"),
        ({"max_positions": 13}, "max_positions is 13; this model takes 1 to 12"),
        ({"max_positions": 0}, "max_positions is 0"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model(), PROMPT, **{"num_tokens": 1, **settings})


@pytest.mark.parametrize("prompt", [torch.zeros(1, 0, dtype=torch.int64), torch.arange(3)])
def test_a_prompt_without_tokens_or_rows_is_refused(prompt):
    with pytest.raises(ValueError, match=r"prompts are \(B, T\) with T of at least 1"):
        generate(model(), prompt, num_tokens=1)
