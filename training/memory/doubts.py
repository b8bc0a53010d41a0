"""Where the formula is known to be wrong, and by how much, measured beside the trace or a GPU."""

from training.config import TrainingConfig
from training.models import encoder_decoder


def describe_doubts(config: TrainingConfig) -> str:
    """What to bear in mind about a prediction, a line; empty where it is within 1 %."""
    doubts = []
    shape, mode = config.model.config, config.engine.activation_checkpointing
    if config.engine.compile == "deepcompile":
        doubts.append("16 %, for DeepCompile, which keeps weights gathered by a plan of its own")
    if isinstance(shape, encoder_decoder.Config) and shape.dropout and mode == "selective":
        doubts.append(f"5 %, for model.dropout={shape.dropout:g} under selective checkpointing")
    if not doubts:
        return ""
    return f"Too low by up to: {'; '.join(doubts)}. --probe measures this device, a run logs both."
