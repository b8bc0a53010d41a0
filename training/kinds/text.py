"""Runs on text: sequences of tokens, a tokenizer, generated samples."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.manifest import Manifest
from training.attention_maps import look_at_text
from training.config import TextTrainingConfig
from training.data.config import open_tokens
from training.data.tokens import TokenDataset
from training.engine import Engine
from training.events import EventFile
from training.hooks.attention import build_attention_hook
from training.hooks.samples import SamplesHook
from training.objective import MicroBatch
from training.tasks.causal_lm import check_vocabulary
from training.text import load_codec
from training.trainer import Hook

UNIT = "tokens"

TOKENS_SHOWN = 48
"""Of a sequence, at most, in pictures of attention: their names are still legible."""


def build_task(config: TextTrainingConfig, manifest: Manifest) -> Any:
    """The task with the end of document of the dataset's tokenizer."""
    where, tokenizer = config.data.dataset_dir, manifest.tokenizer
    if tokenizer is None:
        raise ValueError(f"{where}: has no tokenizer, expected a text dataset")
    if tokenizer.end_of_document >= tokenizer.vocab_size:
        raise ValueError(
            f"{where}: its end of document is token {tokenizer.end_of_document}, "
            f"but its tokenizer has {tokenizer.vocab_size} tokens; verify the dataset"
        )
    check_vocabulary(
        model_vocab_size=config.model.config.vocab_size, dataset_vocab_size=tokenizer.vocab_size
    )
    task = config.task.module.Task(
        config.task.config,
        vocab_size=tokenizer.vocab_size,
        end_of_document=tokenizer.end_of_document,
    )
    if hasattr(task, "check_model"):
        task.check_model(
            model_vocab_size=config.model.config.vocab_size,
            sequence_length=config.data.sequence_length,
        )
    return task


def open_split(
    config: TextTrainingConfig, manifest: Manifest, *, split: str, ranks_per_lane_set: int = 1
) -> TokenDataset:
    """The sequences of a split."""
    return open_tokens(
        config.data,
        manifest,
        split=split,
        seed=config.seed,
        ranks_per_lane_set=ranks_per_lane_set,
    )


def describe_samples(config: TextTrainingConfig) -> str:
    """Their length."""
    return f"sequences of {config.data.sequence_length:,} tokens"


def units_per_sample(config: TextTrainingConfig) -> int:
    """Input tokens of a sequence."""
    return config.data.sequence_length


def build_hooks(
    config: TextTrainingConfig,
    manifest: Manifest,
    task: Any,
    engine: Engine,
    events: EventFile | None,
) -> list[Hook]:
    """Generated text, and what heads look at."""
    if not (config.samples.every_steps or config.attention.every_steps):
        return []
    codec, hooks = load_codec(config.data.dataset_dir), list[Hook]()
    if config.samples.every_steps:
        context = config.data.sequence_length
        hooks.append(SamplesHook(engine, codec, events, config.samples, context=context))
    if config.attention.every_steps:
        batch = _first_tokens(config, manifest, task)
        names = codec.names(batch["tokens"][0].tolist())

        def look(model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
            return look_at_text(model, batch, names, with_rollout=True)

        hooks.append(build_attention_hook(engine, look, batch, events, config.attention))
    return hooks


def _first_tokens(config: TextTrainingConfig, manifest: Manifest, task: Any) -> MicroBatch:
    """Of the validation split, or, where there is none, of that of training: (1, T).

    As the task sees them: where it masks documents, with their positions and documents.
    """
    split = "validation" if manifest.splits.get("validation") else "train"
    sequences = open_split(config, manifest, split=split)
    batch: MicroBatch = task.collate(sequences.read_in_file_order(np.arange(1)))
    sequences.close()
    return {name: tensor[:, :TOKENS_SHOWN] for name, tensor in batch.items()}
