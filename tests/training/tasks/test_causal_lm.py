"""Causal language modelling: collated batches, documents, the chunked loss against the plain."""

import dataclasses
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from training.augment.draws import sample_keys
from training.compilation import compile_loss
from training.data.tokens import Sequences
from training.models.transformer import Config as ModelConfig
from training.models.transformer import Model
from training.tasks.causal_lm import (
    Config,
    Task,
    check_vocabulary,
    chunked_cross_entropy,
    document_layout,
)

END = 9
MODEL = ModelConfig(vocab_size=37, d_model=16, num_layers=2, num_heads=2, max_positions=16)


def task(**changes) -> Task:
    return Task(Config(**changes), vocab_size=10, end_of_document=END)


def sequences(rows, starts, *, weights=None, dtype=np.uint16) -> Sequences:
    return Sequences(
        np.array(rows, dtype),
        [np.array(row, np.int64) for row in starts],
        np.arange(len(rows)),
        np.ones(len(rows), bool) if weights is None else np.array(weights),
        sample_keys(0, np.arange(len(rows))),
    )


def lists(batch):
    return {name: tensor.tolist() for name, tensor in batch.items()}


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_collate_shifts_targets_and_ignores_padding_rows(dtype):
    given_rows = sequences(
        [[1, 2, END, 3, 4], [5, 6, 7, 8, END]], [[3], []], weights=[True, False], dtype=dtype
    )
    batch = task().collate(given_rows)
    assert lists(batch) == {
        "tokens": [[1, 2, END, 3], [5, 6, 7, 8]],
        "targets": [[2, END, 3, 4], [-100] * 4],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert all(tensor.is_contiguous() for tensor in batch.values())
    assert task().num_targets(batch) == 4


def test_masked_documents_begin_with_the_end_token_before_them_and_keep_every_target():
    rows = [[1, END, 2, 3, END, 4], [END, 5, END, END, 6, END], [1, 2, 3, 4, 5, END]]
    batch = task(mask_documents=True).collate(sequences(rows, [[0, 2, 5], [1, 3, 4], []]))
    assert lists(batch) == {
        "tokens": [row[:-1] for row in rows],
        "targets": [row[1:] for row in rows],
        "documents": [[0, 1, 1, 1, 2], [0, 0, 1, 2, 2], [0, 0, 0, 0, 0]],
        "positions": [[0, 0, 1, 2, 0], [0, 1, 0, 0, 1], [0, 1, 2, 3, 4]],
        "document_begins": [[0, 1, 4, 5], [0, 2, 3, 5], [0, 5, 5, 5]],
    }


def walk(opened, num_tokens):
    """Documents and positions of a row, token by token."""
    documents, positions = [0], [0]
    for index in range(1, num_tokens):
        opens = index + 1 in opened
        documents.append(documents[-1] + opens)
        positions.append(0 if opens else positions[-1] + 1)
    return documents, positions


@given(st.integers(1, 13), st.data())
@settings(max_examples=100, deadline=None)
def test_layout_is_that_of_a_walk_along_the_tokens(num_tokens, data):
    starts = data.draw(st.lists(st.sets(st.integers(0, num_tokens)), min_size=1, max_size=5))
    layout = document_layout([np.array(sorted(row), np.int64) for row in starts], num_tokens)
    walks = [walk(opened, num_tokens) for opened in starts]
    assert layout["documents"].tolist() == [documents for documents, _ in walks]
    assert layout["positions"].tolist() == [positions for _, positions in walks]
    begins = layout.pop("document_begins")
    for row, (_, positions) in zip(begins.tolist(), walks, strict=True):
        own = [index for index, position in enumerate(positions) if position == 0]
        assert row == own + [num_tokens] * (len(row) - len(own))
    assert begins.dtype == np.int32
    most = max(documents[-1] + 1 for documents, _ in walks)
    assert most <= begins.shape[1] < 2 * most
    assert {array.dtype for array in layout.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("mask_documents", [False, True])
def test_rows_are_collated_each_by_itself(mask_documents):
    """The loader collates many micro batches at once and cuts them afterwards."""
    random = np.random.default_rng(0)
    rows = random.integers(0, END, (50, 33))
    starts = [np.flatnonzero(random.random(33) < 0.1) for _ in rows]
    weights = random.random(50) < 0.8
    collate = task(mask_documents=mask_documents).collate
    together = collate(sequences(rows, starts, weights=weights))
    for first, stop in ((0, 1), (1, 12), (12, 50)):
        part = slice(first, stop)
        alone = collate(sequences(rows[part], starts[part], weights=weights[part]))
        if mask_documents:  # as many columns as the row with most documents needs
            ours, theirs = together["document_begins"][part], alone.pop("document_begins")
            assert torch.equal(ours[:, : theirs.shape[1]], theirs)
            assert (ours[:, theirs.shape[1] :] == 32).all()
        for name, tensor in alone.items():
            assert torch.equal(together[name][part], tensor), name
            assert together[name][part].is_contiguous()


def test_the_loss_of_packed_documents_is_the_sum_of_the_loss_of_each():
    torch.manual_seed(0)
    model = Model(MODEL)
    documents = [[END, 3, 1, END], [END, 2, END], [END, 4, 4, 4, 7, END]]
    packed = [END] + [token for document in documents for token in document[1:]]
    starts = [1, 4, 6]
    assert [packed[start] for start in starts] == [3, 2, 4]
    masked = task(mask_documents=True)
    together = masked.loss(model, masked.collate(sequences([packed], [starts])))[0]
    apart = [
        task().loss(model, task().collate(sequences([document], [[1]])))[0]
        for document in documents
    ]
    torch.testing.assert_close(together, sum(apart), rtol=1e-6, atol=1e-6)


def loss_and_gradients(model, batch, *, chunk_tokens):
    model.zero_grad()
    loss, metrics = task(chunk_tokens=chunk_tokens).loss(model, batch)
    assert metrics == {}
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def plain(model, batch):
    model.zero_grad()
    logits = model(batch["tokens"]).flatten(0, 1)
    loss = F.cross_entropy(logits, batch["targets"].flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 32, 1000])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_chunked_loss_and_gradients_are_the_plain_ones(chunk_tokens, tied, dtype, bound):
    torch.manual_seed(0)
    model = Model(dataclasses.replace(MODEL, tie_embeddings=tied, init_std=0.2)).to(dtype)
    tokens = torch.randint(37, (2, 17))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:].clone()}
    batch["targets"][1, 3:9] = -100
    ours = loss_and_gradients(model, batch, chunk_tokens=chunk_tokens)
    assert ours[0].dtype == dtype
    for actual, expected in zip(ours, plain(model, batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def test_a_compiled_loss_is_the_same_loss():
    torch.manual_seed(0)
    model = Model(dataclasses.replace(MODEL, init_std=0.2))
    tokens = torch.randint(37, (2, 17))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:].clone()}
    batch["targets"][1, 3:9] = -100
    compiled = task(chunk_tokens=16)
    compile_loss(compiled, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        model.zero_grad()
        loss, _ = compiled.loss(model, batch)
        loss.backward()
        ours = [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        for actual, expected in zip(ours, plain(model, batch), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_the_loss_of_a_bf16_model_is_summed_in_fp32():
    torch.manual_seed(0)
    model = Model(dataclasses.replace(MODEL, init_std=0.2)).bfloat16()
    tokens = torch.randint(37, (1, 17))
    features = model.features(tokens[:, :-1])
    loss = chunked_cross_entropy(model, features, tokens[:, 1:], chunk_tokens=5)
    logits = model.logits(features).double().flatten(0, 1)
    exact = F.cross_entropy(logits, tokens[0, 1:], reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_a_batch_of_padding_costs_nothing():
    model = Model(MODEL)
    batch = task().collate(sequences([[1, 2, 3, 4]], [[]], weights=[False]))
    loss, _ = task(chunk_tokens=2).loss(model, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert task().num_targets(batch) == 0
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


class LogitSizes(torch.utils._python_dispatch.TorchDispatchMode):
    """The most rows of V numbers that any operation makes; the head's own weights have 16."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocab_size,):
                self.rows = max(self.rows, tensor.numel() // self.vocab_size)
        return out


@pytest.mark.parametrize(("chunk_tokens", "rows"), [(20, 20), (31, 31), (64, 64), (None, 64)])
def test_no_operation_makes_more_logits_than_a_chunk(chunk_tokens, rows):
    model = Model(MODEL)
    tokens = torch.randint(37, (4, 17))
    with LogitSizes(37) as sizes:
        features = model.features(tokens[:, :-1])
        targets = tokens[:, 1:]
        if chunk_tokens is None:
            loss = F.cross_entropy(model.logits(features).flatten(0, 1), targets.flatten())
        else:
            loss = chunked_cross_entropy(model, features, targets, chunk_tokens=chunk_tokens)
        loss.backward()
    assert sizes.rows == rows


class LiveBytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the tensors that operations made and that still live: now, and at the most."""

    def __init__(self):
        super().__init__()
        self.seen, self.live, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _add(self, storage):
        if self.seen.get(id(storage), lambda: None)() is storage:
            return
        self.seen[id(storage)] = weakref.ref(storage)
        self.live += storage.nbytes()
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, num_bytes):
        self.live -= num_bytes


def peak_bytes(chunk_tokens, *, num_tokens, vocab_size, d_model):
    config = dataclasses.replace(MODEL, vocab_size=vocab_size, d_model=d_model, head_dim=0, d_ff=0)
    model = Model(config)
    features = torch.randn(1, num_tokens, d_model, requires_grad=True)
    targets = torch.randint(vocab_size, (1, num_tokens))
    with LiveBytes() as bytes_:
        chunked_cross_entropy(model, features, targets, chunk_tokens=chunk_tokens).backward()
    return bytes_.peak


def test_peak_memory_is_12_bytes_per_vocabulary_entry_of_the_chunk():
    sizes = {"num_tokens": 1024, "vocab_size": 2000, "d_model": 16}
    gradients = 4 * 16 * (2000 + 2 * 1024)  # of the head and the features, and of a chunk's
    for chunk_tokens in (1024, 256, 64):
        logits = 4 * 2000 * chunk_tokens
        peak = peak_bytes(chunk_tokens, **sizes)
        assert 2 * logits < peak < 3 * logits + 2 * gradients, chunk_tokens


def test_the_head_is_called_as_a_module_also_when_it_is_computed_again():
    model = Model(MODEL)
    calls = []
    model.head.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    tokens = torch.randint(37, (2, 17))
    features = model.features(tokens[:, :-1])
    loss = chunked_cross_entropy(model, features, tokens[:, 1:], chunk_tokens=16)
    assert len(calls) == 2
    loss.backward()
    assert calls == [(16, 16)] * 4


def test_a_vocabulary_larger_than_the_models_is_refused():
    check_vocabulary(model_vocab_size=65, dataset_vocab_size=65)
    with pytest.raises(ValueError, match=r"model.vocab_size is 64.* 65 tokens.*at least 65 \(128"):
        check_vocabulary(model_vocab_size=64, dataset_vocab_size=65)


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk_tokens is 0; it must be at least 1"):
        Config(chunk_tokens=0)


@pytest.mark.parametrize(("loss", "perplexity"), [(2.0, math.exp(2.0)), (1000.0, math.inf)])
def test_summary(loss, perplexity):
    summary = task().summarise({"loss": torch.tensor(loss, dtype=torch.float64)})
    assert summary.scalars == {"loss": loss, "perplexity": perplexity}
    assert summary.line == f"loss {loss:.4f}, perplexity {perplexity:.2f}"
    assert summary.pictures == {}
