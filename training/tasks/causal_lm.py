"""Causal language modelling: every token is predicted from those before it.

The loss is a sum over targets in fp32, computed in chunks of tokens, so that the logits of a whole
micro batch never exist at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from training.data.tokens import Sequences
from training.objective import Metrics, Summary

KIND = "text"
"""Of the datasets that this task learns from."""

NEEDS = "tokens"
"""What a model must give."""

DOCUMENT_LAYOUT = ("positions", "documents", "document_begins")
"""What a batch has beside tokens and targets where attention stays inside documents."""

IGNORED = -100
"""Target that is no term of the loss."""

TokenLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, V) and targets (N) to the sum of the cross-entropy, nats."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Causal language modelling."""

    chunk_tokens: int = 2048
    """Tokens whose logits exist at once; about 12 bytes x chunk_tokens x vocab_size at the peak."""
    mask_documents: bool = False
    """Attention stays inside the document, and positions restart with it."""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1")


class Head(Protocol):
    """What a chunked loss needs of a model."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V)."""
        ...


class DecoderModel(Head, Protocol):
    """What the loss needs of a model."""

    def features(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        document_begins: Tensor | None = None,
    ) -> Tensor:
        """Features (B, T, D) in front of the head."""
        ...


class Task:
    """Collate sequences, count targets, compute the loss."""

    def __init__(self, config: Config, *, vocab_size: int, end_of_document: int) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.end_of_document = end_of_document
        self.token_loss: TokenLoss = token_loss

    def collate(self, sequences: Sequences) -> dict[str, Tensor]:
        """Sequences (B, T + 1) to tokens and targets (B, T), and with masks their documents."""
        check_tokens(sequences, vocab_size=self.vocab_size)
        tokens = sequences.tokens.astype(np.int64)
        targets = np.where(sequences.weights[:, None], tokens[:, 1:], IGNORED)
        batch = {"tokens": tokens[:, :-1], "targets": targets}
        if self.config.mask_documents:
            batch |= document_layout(sequences.document_starts, tokens.shape[1] - 1)
        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in batch}

    def share(self, batch: dict[str, Tensor], *, index: int, size: int) -> dict[str, Tensor]:
        """The positions of one of `size` ranks that share the sequences (B, T): (B, T / size).

        Documents and where they begin stay whole: attention sees all positions.
        """
        length = batch["tokens"].shape[1]
        assert length % size == 0  # checked with the config
        positions = torch.arange(length).expand_as(batch["tokens"])  # (B, T)
        own = slice(index * length // size, (index + 1) * length // size)
        shared = {"positions": positions} | batch
        return {
            name: tensor if name.startswith("document") else tensor[:, own].contiguous()
            for name, tensor in shared.items()
        }

    def num_targets(self, batch: dict[str, Tensor]) -> int:
        """Terms of the loss."""
        return int((batch["targets"] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the cross-entropy over the targets, nats."""
        decoder: DecoderModel = model  # type: ignore[assignment]
        layout = {name: batch.get(name) for name in DOCUMENT_LAYOUT}
        features = decoder.features(batch["tokens"], **layout)
        loss_sum = chunked_cross_entropy(
            decoder,
            features,
            batch["targets"],
            chunk_tokens=self.config.chunk_tokens,
            token_loss=self.token_loss,
        )
        return loss_sum, {}

    def summarise(self, means: Metrics) -> Summary:
        """Loss, nats per token, and perplexity."""
        return summarise(means)


def check_tokens(sequences: Sequences, *, vocab_size: int) -> None:
    """Refuse tokens that the tokenizer does not have.

    Raises:
        ValueError: with the largest.
    """
    if sequences.tokens.size and (largest := int(sequences.tokens.max())) >= vocab_size:
        raise ValueError(
            f"the dataset holds token {largest}, but its manifest says that the tokenizer has "
            f"{vocab_size} tokens; verify the dataset"
        )


def summarise(means: Metrics) -> Summary:
    """A mean cross-entropy, nats per token, and its perplexity."""
    loss = means["loss"].item()
    perplexity = math.exp(loss) if loss < 700 else math.inf
    line = f"loss {loss:.4f}, perplexity {perplexity:.2f}"
    return Summary(line, {"loss": loss, "perplexity": perplexity})


def check_vocabulary(*, model_vocab_size: int, dataset_vocab_size: int) -> None:
    """Refuse a model that has no row for some token of the dataset.

    Raises:
        ValueError: with both sizes and the size to set.
    """
    if dataset_vocab_size > model_vocab_size:
        multiple = 64 * -(-dataset_vocab_size // 64)
        raise ValueError(
            f"model.vocab_size is {model_vocab_size}, but the dataset's tokenizer has "
            f"{dataset_vocab_size} tokens; set it to at least {dataset_vocab_size} "
            f"({multiple} is the next multiple of 64, which GPUs prefer)"
        )


def document_layout(
    document_starts: list[npt.NDArray[Any]], num_tokens: int
) -> dict[str, npt.NDArray[Any]]:
    """Document id and position inside the document of each input token, and where documents begin.

    The end-of-document token before a document is, as an input, the document's first token: all it
    does there is to predict how the document starts. So every token stays a target, each is
    predicted from its own document alone, and an end-of-document token by itself is the start of
    generation that was trained. `[7 8 E 5 6]` with a document start at 3, of 4 inputs, gives
    documents `0 0 1 1` and positions `0 1 0 1`.

    There they begin at `0 2`; rows have as many columns, a power of two, as the one with most
    documents, filled with the number of tokens: few shapes, for each is compiled for itself.
    """
    rows = np.repeat(np.arange(len(document_starts)), [len(starts) for starts in document_starts])
    columns = np.concatenate(document_starts).astype(np.int64)
    opens = np.zeros((len(document_starts), num_tokens), bool)
    opens[rows, np.maximum(columns - 1, 0)] = True
    opens[:, 0] = True  # a row begins with a document, or with the rest of one
    begins = np.flatnonzero(opens)
    lengths = np.diff(begins, append=opens.size)
    first_of_row = np.flatnonzero(begins % num_tokens == 0)
    numbers = np.arange(len(begins)) - first_of_row[begins // num_tokens]
    positions = np.arange(opens.size) - np.repeat(begins, lengths)
    documents = np.repeat(numbers, lengths)
    most = int(numbers.max()) + 1
    document_begins = np.full((len(opens), 1 << (most - 1).bit_length()), num_tokens, np.int32)
    document_begins[begins // num_tokens, numbers] = begins % num_tokens
    return {
        "positions": positions.reshape(opens.shape),
        "documents": documents.reshape(opens.shape),
        "document_begins": document_begins,
    }


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropy of logits (N, V) against targets (N), in fp32 at least."""
    logits = logits.to(_at_least_fp32(logits.dtype))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def chunked_cross_entropy(
    model: Head,
    features: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int,
    token_loss: TokenLoss = token_loss,
) -> Tensor:
    """Sum of the cross-entropy of features (B, T, D) against targets (B, T), in fp32.

    Each chunk keeps its features alone and computes its logits again in the backward pass: 2 x
    d_model x vocab_size more operations per token, for 12 x vocab_size bytes less. A batch of one
    chunk is computed once.
    """
    features, targets = features.flatten(0, 1), targets.flatten()  # (B T, D), (B T)

    def of_chunk(features: Tensor, targets: Tensor) -> Tensor:
        return token_loss(model.logits(features), targets)

    if len(targets) <= chunk_tokens:
        return of_chunk(features, targets)
    loss_sum = torch.zeros((), dtype=_at_least_fp32(features.dtype), device=features.device)
    for start in range(0, len(targets), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        loss_sum = loss_sum + checkpoint(
            of_chunk,
            features[chunk],
            targets[chunk],
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return loss_sum


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
