"""Span corruption on a tape."""

from collections.abc import Callable
from typing import Any

from training.memory.tape import Tape, Value
from training.memory.tasks.causal_lm import chunked
from training.tasks.span_corruption import count_lengths


def batch_bytes(config: Any) -> int:
    """Source, tokens and targets, and with masks the documents of the first two, 8 bytes each."""
    lengths = count_lengths(config.data.sequence_length, config.task.config)
    masked: bool = config.task.config.mask_documents
    num_tokens = (1 + masked) * lengths.source + (2 + masked) * lengths.target
    size: int = config.batch.micro_batch_size
    return 8 * size * num_tokens


def loss(tape: Tape, model: Any, config: Any, *, keeping: Callable[[int], str]) -> Value:
    """The loss of one micro batch of a training config."""
    lengths = count_lengths(config.data.sequence_length, config.task.config)
    features = model.features(
        tape,
        num_rows=config.batch.micro_batch_size,
        num_source=lengths.source,
        num_positions=lengths.target,
        masked=config.task.config.mask_documents,
        keeping=keeping,
    )
    return chunked(tape, model, features, config.task.config.chunk_tokens)
