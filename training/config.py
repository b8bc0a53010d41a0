"""The schema of a training config: what `python -m training CONFIG` is told."""

import math
from dataclasses import dataclass, field
from typing import Literal

from configs import Plugin, plugin
from training.batch_size import Config as BatchConfig
from training.checkpoint import Config as CheckpointConfig
from training.data.config import Config as DataConfig
from training.deepspeed_config import Config as EngineConfig
from training.hooks.evaluation import Config as EvaluationConfig
from training.hooks.metrics import Config as LoggingConfig
from training.hooks.samples import Config as SamplesConfig
from training.optimizer import Config as OptimizerConfig
from training.schedule import Config as ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run."""

    run_dir: str
    """Folder of the run: checkpoints, metrics, TensorBoard events; its name is the run's name."""
    num_steps: int
    """Optimizer steps of the whole run."""
    seed: int = 0
    """Of initial weights, dropout and the order of data."""
    resume: Literal["auto", "never", "required"] = "auto"
    """Continue from the last good checkpoint if there is one; never; or fail if there is none."""
    model: Plugin = plugin("training.models")
    """The model: a module of training/models/."""
    task: Plugin = plugin("training.tasks")
    """What is learned: a module of training/tasks/."""
    data: DataConfig
    """The dataset and how it is read."""
    batch: BatchConfig
    """Batch sizes; gradient accumulation follows from them and the world size."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate over the steps."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed ZeRO, precision and memory."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and how many are kept."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation loss."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Generated text."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics on the console and in TensorBoard."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together, also in a dry run."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {self.num_steps}")
        if not 0 <= self.seed < 2**63:  # the seeds of ranks count up from it
            raise ValueError(f"seed must be at least 0 and below 2^63, found {self.seed}")
        self.schedule.check(self.num_steps)
        longest = getattr(self.model.config, "max_positions", math.inf)
        if self.data.sequence_length > longest:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}, but model.max_positions is "
                f"{longest}; raise the one or lower the other"
            )
