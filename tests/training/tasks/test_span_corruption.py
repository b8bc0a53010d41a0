"""Span corruption: T5's lengths, nothing lost, the same for every order, rank and worker."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment.draws import sample_keys
from training.data.tokens import Sequences
from training.models.encoder_decoder import Config as ModelConfig
from training.models.encoder_decoder import Model
from training.tasks.span_corruption import Config, Task, count_lengths, draw_spans

END, VOCABULARY = 9, 50


def task(**changes) -> Task:
    return Task(Config(**changes), vocab_size=VOCABULARY, end_of_document=END)


def sequences(num_rows, num_tokens, *, seed=0, starts=None, weights=None) -> Sequences:
    """Random tokens, none of them an end, with the positions 100, 101 and so on."""
    random = np.random.default_rng(1)
    positions = np.arange(100, 100 + num_rows)
    return Sequences(
        random.integers(10, VOCABULARY, (num_rows, num_tokens + 1), np.uint16),
        starts or [np.empty(0, np.int64)] * num_rows,
        positions,
        np.ones(num_rows, bool) if weights is None else np.array(weights),
        sample_keys(seed, positions),
    )


def rows_of(sequences, index) -> Sequences:
    return Sequences(
        sequences.tokens[index],
        [sequences.document_starts[row] for row in index],
        sequences.positions[index],
        sequences.weights[index],
        sequences.keys[index],
    )


def random_spans_helper(inputs_length, noise_density, mean_noise_span_length):
    """As in text-to-text-transfer-transformer, t5/data/preprocessors.py."""

    def to_inputs_and_targets(tokens_length):
        num_noise_tokens = int(round(tokens_length * noise_density))  # noqa: RUF046
        num_nonnoise_tokens = tokens_length - num_noise_tokens
        num_noise_spans = int(round(num_noise_tokens / mean_noise_span_length))  # noqa: RUF046
        return num_nonnoise_tokens + num_noise_spans + 1, num_noise_tokens + num_noise_spans + 1

    tokens_length = inputs_length
    while to_inputs_and_targets(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    return tokens_length, to_inputs_and_targets(tokens_length)[1]


@pytest.mark.parametrize("inputs_length", [64, 100, 256, 512, 1024, 4096])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.3, 2.0)])
def test_lengths_are_those_of_t5(inputs_length, density, mean):
    num_tokens, targets_length = random_spans_helper(inputs_length, density, mean)
    lengths = count_lengths(num_tokens, Config(noise_density=density, mean_span_length=mean))
    assert lengths.target == targets_length
    assert lengths.source <= inputs_length
    longer = count_lengths(num_tokens + 1, Config(noise_density=density, mean_span_length=mean))
    assert longer.source > inputs_length


def test_lengths_of_the_paper():
    assert random_spans_helper(512, 0.15, 3.0) == (568, 114)
    lengths = count_lengths(568, Config())
    assert (lengths.source, lengths.target, lengths.num_noise, lengths.num_spans) == (
        512, 114, 85, 28,
    )  # fmt: skip


def put_together(source, targets):
    """The sequence again, from what is kept and what was taken out."""
    spans, taken = {}, []
    for token in targets[:-1]:
        if token >= VOCABULARY:
            taken = spans.setdefault(token, [])
        else:
            taken.append(token)
    assert all(spans.values())
    return [one for token in source[:-1] for one in spans.get(token, [token])], list(spans)


@given(
    st.integers(2, 200),
    st.floats(0.01, 0.99),
    st.floats(1, 20),
    st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_source_and_target_make_up_the_sequence(num_tokens, density, mean, seed):
    given_rows = sequences(3, num_tokens, seed=seed)
    one = task(noise_density=density, mean_span_length=mean)
    batch = one.collate(given_rows)
    lengths = count_lengths(num_tokens, one.config)
    assert batch["source"].shape == (3, lengths.source)
    assert batch["tokens"].shape == batch["targets"].shape == (3, lengths.target)
    assert one.num_targets(batch) == 3 * lengths.target
    sentinels = list(range(VOCABULARY, VOCABULARY + lengths.num_spans))
    for row in range(3):
        source, targets = batch["source"][row].tolist(), batch["targets"][row].tolist()
        expected = given_rows.tokens[row, :-1].tolist()
        assert put_together(source, targets) == (expected, sentinels)
        assert [token for token in source if token >= VOCABULARY] == sentinels
        assert source[-1] == targets[-1] == END
        assert source[0] == expected[0]
        assert targets[0] == VOCABULARY
        assert batch["tokens"][row].tolist() == [END, *targets[:-1]]


def test_every_division_is_as_likely():
    """Of 7 tokens, 3 taken out in 2 spans: 3 ways to keep 4 in two, times 2 to take out 3."""
    config = Config(noise_density=0.43, mean_span_length=1.5)
    spans = draw_spans(sample_keys(0, np.arange(60_000)), 7, count_lengths(7, config))
    ways, counts = np.unique(spans.noise, axis=0, return_counts=True)
    assert len(ways) == 6
    # Six standard deviations of a binomial of 60,000 at 1/6.
    assert abs(counts - 10_000).max() < 6 * (60_000 * 5 / 36) ** 0.5


@pytest.mark.parametrize("mask_documents", [False, True])
def test_rows_depend_on_their_position_and_the_seed_alone(mask_documents):
    one = task(mask_documents=mask_documents)
    starts = [np.array([5 + row]) for row in range(8)]
    given_rows = sequences(8, 60, starts=starts)
    whole = one.collate(given_rows)
    for index in ([0], [6, 2], [3, 4, 5], list(range(7, -1, -1))):  # as ranks and workers would
        part = one.collate(rows_of(given_rows, index))
        assert part.keys() == whole.keys()
        for name, tensor in part.items():
            assert torch.equal(tensor, whole[name][index]), name
            assert tensor.is_contiguous()
            assert tensor.dtype == torch.int64
    other = one.collate(sequences(8, 60, starts=starts, seed=1))
    assert all((other["source"] != whole["source"]).any(dim=1))


def test_rows_of_weight_0_are_no_targets():
    batch = task().collate(sequences(2, 20, weights=[True, False]))
    assert batch["targets"][1].tolist() == [-100] * batch["targets"].shape[1]
    assert task().num_targets(batch) == batch["targets"].shape[1]


def test_documents_of_source_and_target():
    """A span belongs to the document in which it begins, and a document begins with an end."""
    starts = [np.array([0, 6, 13, 20]), np.array([9])]
    given_rows = sequences(2, 20, starts=starts)
    one = task(mask_documents=True, noise_density=0.4, mean_span_length=2.0)
    batch = one.collate(given_rows)
    spans = draw_spans(given_rows.keys, 20, count_lengths(20, one.config))
    for row, opened in enumerate(([0, 6, 13], [9])):
        document, of_source, of_target, inputs = 0, [], [], []
        current, last, targets = 0, None, iter(batch["targets"][row].tolist())
        before = END
        for index in range(20):
            document += index in opened
            if not spans.noise[row, index]:
                of_source.append(document)
                continue
            if spans.begin[row, index]:
                current = document
                of_source.append(current)
            for _ in range(1 + spans.begin[row, index]):
                of_target.append(current)
                inputs.append(before if current == last else END)
                before, last = next(targets), current
        assert batch["source_documents"][row].tolist() == [*of_source, of_source[-1]]
        assert batch["documents"][row].tolist() == [*of_target, of_target[-1]]
        assert batch["tokens"][row].tolist() == [*inputs, before]


@pytest.mark.parametrize("mask_documents", [False, True])
@pytest.mark.parametrize("chunk_tokens", [5, 1000])
def test_the_loss_of_a_batch_is_that_of_its_rows_added_up(mask_documents, chunk_tokens):
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=64, d_model=16, num_layers=2, num_heads=2))
    one = task(mask_documents=mask_documents, chunk_tokens=chunk_tokens)
    batch = one.collate(sequences(4, 40, starts=[np.array([11, 30])] * 4))
    together, metrics = one.loss(model, batch)
    rows = [{name: each[row : row + 1] for name, each in batch.items()} for row in range(4)]
    torch.testing.assert_close(together, sum(one.loss(model, row)[0] for row in rows))
    assert metrics == {}
    if not mask_documents:
        logits = model(batch["source"], batch["tokens"])
        plain = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum"
        )
        torch.testing.assert_close(together, plain)


def test_a_model_without_rows_for_sentinels_is_refused():
    task().check_model(model_vocab_size=78, sequence_length=568)
    message = "vocab_size is 77, but .* 50 tokens, and 28 sentinels .* at least 78 .128 is"
    with pytest.raises(ValueError, match=message):
        task().check_model(model_vocab_size=77, sequence_length=568)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"noise_density": 0.0}, "noise_density is 0.0; it must be between 0 and 1"),
        ({"noise_density": 1.0}, "noise_density is 1.0; it must be between 0 and 1"),
        ({"mean_span_length": 0.5}, "mean_span_length is 0.5; it must be at least 1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; it must be at least 1"),
    ],
)
def test_numbers_without_a_meaning_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Config(**keys)
    with pytest.raises(ValueError, match="sequence_length is 1; span_corruption needs at least 2"):
        count_lengths(1, Config())


def test_tokens_that_the_tokenizer_has_not_are_refused():
    rows = sequences(2, 20)
    rows.tokens[0, 3] = VOCABULARY
    with pytest.raises(ValueError, match="holds token 50, but its manifest says"):
        task().collate(rows)
