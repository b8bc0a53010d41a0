"""Span corruption (Raffel et al. 2020): what was taken out of a text is predicted from the rest.

`a b c d e f g` with `c d` and `f` taken out gives the source `a b <0> e <1> g END` and the target
`<0> c d <1> f END`; a sequence always begins with what is kept and ends with what is taken out.
What is taken out of a sequence depends on (seed, position of the sample) alone.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.augment.draws import Purpose, uniforms
from training.data.order import Ints, Keys
from training.data.tokens import Sequences
from training.objective import Metrics, Summary
from training.tasks.causal_lm import (
    IGNORED,
    Head,
    TokenLoss,
    check_tokens,
    chunked_cross_entropy,
    summarise,
    token_loss,
)

KIND = "text"
"""Of the datasets that this task learns from."""

NEEDS = "target tokens"
"""What a model must give."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Span corruption. The defaults are T5's."""

    noise_density: float = 0.15
    """Share of the tokens that is taken out, above 0 and below 1."""
    mean_span_length: float = 3.0
    """Of what is taken out at one place, tokens; at least 1."""
    chunk_tokens: int = 2048
    """Target tokens whose logits exist at once; about 12 bytes x chunk_tokens x vocab_size."""
    mask_documents: bool = False
    """Attention stays inside the document; a span belongs to the one in which it begins."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density is {self.noise_density}; it must be between 0 and 1")
        if not 1 <= self.mean_span_length < math.inf:
            raise ValueError(
                f"mean_span_length is {self.mean_span_length}; it must be at least 1 and finite"
            )
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of every sequence of so many tokens, whatever is taken out."""

    num_noise: int
    """Tokens that are taken out."""
    num_spans: int
    """Places at which they are: sentinels."""
    source: int
    """What is kept, a sentinel for each span, and the end."""
    target: int
    """What is taken out, a sentinel in front of each span, and the end."""


def count_lengths(num_tokens: int, config: Config) -> Lengths:
    """By the arithmetic of T5's `random_spans_helper`: 568 tokens give 512 and 114.

    Raises:
        ValueError: fewer than two tokens, of which none could be kept beside one taken out.
    """
    if num_tokens < 2:
        raise ValueError(f"data.sequence_length is {num_tokens}; span_corruption needs at least 2")
    num_noise = min(max(round(num_tokens * config.noise_density), 1), num_tokens - 1)
    num_spans = max(round(num_noise / config.mean_span_length), 1)
    num_spans = min(num_spans, num_tokens - num_noise)  # each begins behind something that is kept
    source, target = num_tokens - num_noise + num_spans + 1, num_noise + num_spans + 1
    return Lengths(num_noise, num_spans, source, target)


class SequenceModel(Head, Protocol):
    """What the loss needs of a model."""

    def encode(self, source: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Features (B, S, D) of a source (B, S)."""
        ...

    def decode(
        self,
        tokens: Tensor,
        encoded: Tensor,
        *,
        documents: Tensor | None = None,
        source_documents: Tensor | None = None,
    ) -> Tensor:
        """Features (B, T, D) in front of the head."""
        ...


class Task:
    """Take spans out of sequences, count targets, compute the loss.

    Sentinels are the tokens behind the tokenizer's last: of 32,000, the first one is 32,000.
    """

    def __init__(self, config: Config, *, vocab_size: int, end_of_document: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.end_of_document = end_of_document
        self.token_loss: TokenLoss = token_loss

    def check_model(self, *, model_vocab_size: int, sequence_length: int) -> None:
        """Refuse a model that has no row for some sentinel.

        Raises:
            ValueError: with the size to set.
        """
        num_spans = count_lengths(sequence_length, self.config).num_spans
        needed = self.vocab_size + num_spans
        if needed > model_vocab_size:
            raise ValueError(
                f"model.vocab_size is {model_vocab_size}, but the dataset's tokenizer has "
                f"{self.vocab_size} tokens, and {num_spans} sentinels of span_corruption stand "
                f"behind them; set it to at least {needed} ({64 * -(-needed // 64)} is the next "
                "multiple of 64, which GPUs prefer)"
            )

    def collate(self, sequences: Sequences) -> dict[str, Tensor]:
        """Sequences (B, N + 1), whose last token is the next one's first, to source and target.

        `source` (B, S); `tokens` and `targets` (B, T), the target behind an end and itself; and
        with masks the documents of the two inputs; each then begins with an end of its own.
        """
        check_tokens(sequences, vocab_size=self.vocab_size)
        tokens = sequences.tokens[:, :-1].astype(np.int64)
        lengths = count_lengths(tokens.shape[1], self.config)
        spans = draw_spans(sequences.keys, tokens.shape[1], lengths)
        numbers = self.vocab_size + np.cumsum(spans.begin, axis=1) - 1
        source, targets = (
            _with_end(each, self.end_of_document) for each in divide(spans, tokens, numbers)
        )
        inputs = np.concatenate((np.full_like(targets[:, :1], self.end_of_document), targets), 1)
        batch = {"source": source, "tokens": inputs[:, :-1]}
        batch["targets"] = np.where(sequences.weights[:, None], targets, IGNORED)
        if self.config.mask_documents:
            batch |= _lay_out_documents(sequences.document_starts, spans)
            opens = np.diff(batch["documents"], axis=1, prepend=-1) != 0
            batch["tokens"] = np.where(opens, self.end_of_document, batch["tokens"])
        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in batch}

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """Terms of the loss."""
        return int((batch["targets"] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Sum of the cross-entropy over the targets, nats."""
        both: SequenceModel = model  # type: ignore[assignment]
        of_source, of_target = batch.get("source_documents"), batch.get("documents")
        encoded = both.encode(batch["source"], documents=of_source)
        features = both.decode(
            batch["tokens"], encoded, documents=of_target, source_documents=of_source
        )
        loss_sum = chunked_cross_entropy(
            both,
            features,
            batch["targets"],
            chunk_tokens=self.config.chunk_tokens,
            token_loss=self.token_loss,
        )
        return loss_sum, {}

    def summarise(self, means: Metrics) -> Summary:
        """Loss, nats per token of the target, and perplexity."""
        return summarise(means)


@dataclass(frozen=True, slots=True)
class Spans:
    """What is taken out of sequences."""

    noise: Flags
    """(B, N): the token is taken out."""
    begin: Flags
    """(B, N): and it is the first of its span."""


def draw_spans(keys: Keys, num_tokens: int, lengths: Lengths) -> Spans:
    """Kept and taken out in turn; each way to divide their numbers into spans is as likely.

    So does T5's `random_spans_noise_mask`.
    """
    num_kept, num_cuts = num_tokens - lengths.num_noise, lengths.num_spans - 1
    numbers = uniforms(keys, Purpose.SPANS, num_kept - 1 + lengths.num_noise - 1)  # (B, N - 2)
    kept, noise = numbers[:, : num_kept - 1], numbers[:, num_kept - 1 :]
    in_turn = np.stack(  # (B, spans, 2)
        (_random_parts(kept, num_cuts), _random_parts(noise, num_cuts)), axis=2
    )
    starts = np.cumsum(in_turn.reshape(len(keys), -1), axis=1)[:, :-1]  # (B, 2 spans - 1)
    turns = np.zeros((len(keys), num_tokens), np.int64)
    np.put_along_axis(turns, starts, 1, axis=1)
    begin = np.zeros_like(turns, bool)
    np.put_along_axis(begin, starts[:, ::2], True, axis=1)  # noqa: FBT003
    return Spans(np.cumsum(turns, axis=1) % 2 == 1, begin)


def divide(spans: Spans, tokens: Ints, sentinels: Ints) -> tuple[Ints, Ints]:
    """Source and target without their ends, of tokens (B, N); a span begins with its sentinel."""
    pairs = np.stack((sentinels, tokens), axis=2)  # (B, N, 2)
    source = np.stack((spans.begin, ~spans.noise), axis=2)
    target = np.stack((spans.begin, spans.noise), axis=2)
    rows = len(tokens)
    return pairs[source].reshape(rows, -1), pairs[target].reshape(rows, -1)


def _random_parts(numbers: npt.NDArray[np.float64], num_cuts: int) -> Ints:
    """Lengths (B, num_cuts + 1) of parts of n + 1 things, cut at the least of n numbers (B, n)."""
    cuts = np.sort(np.argsort(numbers, axis=1, kind="stable")[:, :num_cuts], axis=1) + 1
    last = numbers.shape[1] + 1
    parts: Ints = np.diff(cuts, axis=1, prepend=0, append=last)
    return parts


def _with_end(tokens: Ints, end: int) -> Ints:
    return np.concatenate((tokens, np.full_like(tokens[:, :1], end)), axis=1)


def _lay_out_documents(document_starts: list[Ints], spans: Spans) -> dict[str, Ints]:
    """Documents of source and target: a span's are that of its first token, an end's the last."""
    width = spans.noise.shape[1]
    opens = np.zeros((len(document_starts), width), np.int64)
    for row, starts in enumerate(document_starts):
        opens[row, starts[starts < width]] = 1
    documents = np.cumsum(opens, axis=1)
    firsts = np.maximum.accumulate(np.where(spans.begin, np.arange(width), 0), axis=1)
    of_span = np.take_along_axis(documents, firsts, axis=1)
    documents = np.where(spans.noise, of_span, documents)
    source, target = divide(spans, documents, documents)
    return {
        "source_documents": np.concatenate((source, source[:, -1:]), axis=1),
        "documents": np.concatenate((target, target[:, -1:]), axis=1),
    }
