"""Causal language modelling on a tape."""

from collections.abc import Callable
from typing import Any

from training.memory.operations import FP32, cast
from training.memory.tape import ACTIVATIONS, LOGITS, Tape, Value


def batch_bytes(config: Any) -> int:
    """Tokens and targets, with masks or shared sequences positions, and of whole sequences the
    documents: 8 bytes each.
    """
    num_whole: int = config.batch.micro_batch_size * config.data.sequence_length
    size, masked = config.engine.sequence_parallel_size, config.task.config.mask_documents
    columns = 3 if masked or size > 1 else 2
    num_all: int = columns * num_whole // size + num_whole * masked
    return 8 * num_all


def loss(tape: Tape, model: Any, config: Any, *, keeping: Callable[[int], str]) -> Value:
    """The loss of one micro batch of a training config."""
    features = model.features(
        tape,
        num_rows=config.batch.micro_batch_size,
        num_positions=config.data.sequence_length // config.engine.sequence_parallel_size,
        sharing_ranks=config.engine.sequence_parallel_size,
        masked=config.task.config.mask_documents,
        keeping=keeping,
    )
    return chunked(tape, model, features, config.task.config.chunk_tokens)


def chunked(tape: Tape, model: Any, features: Value, chunk_tokens: int) -> Value:
    """The loss of features, in as many chunks as it takes."""
    of_logits = compiled_cross_entropy if tape.compiled else cross_entropy
    d_model = model.config.d_model
    num_tokens = features.numel // d_model

    def of_chunk(part: Value) -> Value:
        return of_logits(tape, model.logits(tape, part))

    tape.enter("loss", kind=LOGITS)
    if num_tokens <= chunk_tokens:
        return of_chunk(features)
    chunks = []
    for start in range(0, num_tokens, chunk_tokens):
        numel = min(chunk_tokens, num_tokens - start) * d_model
        # A slice is a view; its gradient is a tensor of the size of all features, zero elsewhere.
        view = Value(features.buffer, numel, features.width, None)
        size = features.numel * features.width
        part = tape.record((features,), view, gradients=(size,))
        chunks.append(tape.checkpoint(of_chunk, part))
    total = Value(tape.book(FP32), 1, FP32, None)
    return tape.record(tuple(chunks), total, gradients=(FP32,) * len(chunks))


def cross_entropy(tape: Tape, logits: Value) -> Value:
    """Keeps logarithms of softmax in fp32; its gradient makes two more tensors of their size."""
    logits = cast(tape, logits, FP32)
    size = FP32 * logits.numel
    softmax = Value(tape.book(size), logits.numel, FP32, None)
    tape.record((logits,), softmax, saved=(softmax.buffer,), gradients=(size,))
    total = Value(tape.ledger.book(ACTIVATIONS, FP32), 1, FP32, None)
    return tape.record((softmax,), total, gradients=(size,))


def compiled_cross_entropy(tape: Tape, logits: Value) -> Value:
    """Keeps the logits as they came; their gradient is all that it makes.

    On an H200 4 micro batches of GPT 124M with whole logits took 10.02 GiB, by this 9.98.
    """
    total = Value(tape.ledger.book(ACTIVATIONS, FP32), 1, FP32, None)
    size = logits.width * logits.numel
    return tape.record((logits,), total, saved=(logits.buffer,), gradients=(size,))
