"""Where the formula is known to be wrong, and by how much, measured beside the trace or a GPU."""

from training.config import TrainingConfig
from training.models import encoder_decoder


def describe_doubts(config: TrainingConfig) -> str:
    """What to bear in mind about a prediction, a line; empty where it is within 1 %."""
    shape = config.model.config
    doubts = []
    if config.engine.compile == "deepcompile":
        doubts += ["16 %, for DeepCompile, which keeps weights gathered by a plan of its own"]
    if isinstance(shape, encoder_decoder.Config):
        doubts += [
            *_of_dropout(shape),
            *_of_relative_positions(shape, config.engine.activation_checkpointing),
            *_of_a_shared_head(shape, getattr(config.task.config, "chunk_tokens", 0)),
        ]
    if not doubts:
        return ""
    return f"Too low by up to: {'; '.join(doubts)}. --probe measures this device, a run logs both."


def _of_dropout(shape: encoder_decoder.Config) -> list[str]:
    share = "32 %" if shape.positions == "relative" else "11 %"
    return [f"{share}, since model.dropout is {shape.dropout:g}"] if shape.dropout else []


def _of_relative_positions(shape: encoder_decoder.Config, mode: str) -> list[str]:
    if shape.positions != "relative":
        return []
    share = "4 %" if mode == "none" else "10 %"
    return [f"{share}, for relative positions under activation checkpointing {mode}"]


def _of_a_shared_head(shape: encoder_decoder.Config, chunk_tokens: int) -> list[str]:
    if not (shape.tie_embeddings and chunk_tokens):
        return []
    return ["13 %, for a head tied to both embeddings whose loss is made in chunks"]
