"""The schema of a training config: what `python -m training CONFIG` is told."""

import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from configs.plugins import Plugin, plugin, plugin_names
from training.augment.config import Config as AugmentConfig
from training.batch_size import Config as BatchConfig
from training.checkpoint import Config as CheckpointConfig
from training.data.config import DataConfig, TextDataConfig
from training.deepspeed_config import Config as EngineConfig
from training.ema import Config as EmaConfig
from training.hooks.anomalies import Config as AnomalyConfig
from training.hooks.attention import Config as AttentionConfig
from training.hooks.evaluation import Config as EvaluationConfig
from training.hooks.metrics import Config as LoggingConfig
from training.hooks.pictures import Config as PicturesConfig
from training.hooks.probe import Config as ProbeConfig
from training.hooks.samples import Config as SamplesConfig
from training.hooks.watchdog import Config as WatchdogConfig
from training.optimizer import Config as OptimizerConfig
from training.preflight import Config as PreflightConfig
from training.schedule import Config as ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One run: what runs on every kind of dataset are told."""

    run_dir: str
    """Folder of the run: checkpoints, metrics, TensorBoard events; its name is the run's name."""
    num_steps: int
    """Optimizer steps of the whole run."""
    seed: int = 0
    """Of weights, dropout, masks and augmentations; the order of data has data.shuffle_seed."""
    max_hours: float = 0.0
    """Stop behind the step in which the run, since it was launched, has lasted so long, with a
    checkpoint from which the same command goes on; 0 never.
    """
    resume: Literal["auto", "never", "required"] = "auto"
    """Continue from the last good checkpoint if there is one; never; or fail if there is none."""
    init_from: str = ""
    """Start from the weights of a run, a checkpoint or a Hugging Face folder; empty: seeded."""
    init_ema: bool = False
    """Take the average of the other run's weights, of its section ema."""
    init_skip: tuple[str, ...] = ()
    """Names or patterns of weights that start anew all the same, as `embedding.*`."""
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
    ema: EmaConfig = field(default_factory=EmaConfig)
    """The average of the weights over steps, which evaluation looks at too."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed ZeRO, precision and memory."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written and how many are kept."""
    anomalies: AnomalyConfig = field(default_factory=AnomalyConfig)
    """What to do at steps that are not finite or unlike those before."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """What ends a run that hangs."""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """What is looked at before the first step, where there are several ranks."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation loss."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Pictures of what the heads look at."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics on the console and in TensorBoard."""

    def __post_init__(self) -> None:
        """Refuse what does not fit together, also in a dry run."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {self.num_steps}")
        if not 0 <= self.seed < 2**63:  # the seeds of ranks count up from it
            raise ValueError(f"seed must be at least 0 and below 2^63, found {self.seed}")
        if not 0 <= self.max_hours < math.inf:
            raise ValueError(f"max_hours must be 0 or more and finite, found {self.max_hours}")
        self.schedule.check(self.num_steps)
        if self.init_skip and not self.init_from:
            raise ValueError("init_skip names weights of init_from, which is empty")
        if self.ema.decay and self.engine.optimizer_precision == "bf16":
            raise ValueError(
                "ema.decay averages fp32 weights, and engine.optimizer_precision=bf16 has none"
            )
        if self.ema.decay and self.engine.offload_optimizer == "nvme":
            raise ValueError("ema.decay averages weights that engine.offload_optimizer=nvme hides")
        if self.init_ema and not self.init_from:
            raise ValueError("init_ema takes the average of init_from, which is empty")
        self._check_model()
        self._check_checkpointing()
        self._check_cuts()

    def _check_model(self) -> None:
        """Refuse a model that gives something else than the task needs."""
        needs, gives = self.task.module.NEEDS, self.model.module.OUTPUT
        if needs != gives:
            package = self.model.package
            modules = {
                name: importlib.import_module(f"{package}.{name}") for name in plugin_names(package)
            }
            fitting = [name for name, module in modules.items() if needs == module.OUTPUT]
            raise ValueError(
                f"model.name is {self.model.name}, which gives {gives}, but task.name "
                f"{self.task.name} needs a model that gives {needs}: {', '.join(fitting)}"
            )

    def _check_checkpointing(self) -> None:
        """Refuse `every_n` that reaches no block."""
        every = self.engine.activation_checkpointing_every_n
        names = ("num_layers", "num_decoder_layers", "decoder_num_layers")
        num_blocks = sum(getattr(self.model.config, name, 0) for name in names)
        if self.engine.activation_checkpointing == "every_n" and 0 < num_blocks < every:
            raise ValueError(
                f"engine.activation_checkpointing_every_n is {every}, but the model has "
                f"{num_blocks} blocks, of which none would be checkpointed; use 1 to {num_blocks}"
            )

    def _check_cuts(self) -> None:
        """Refuse a model that ranks cannot hold equal slices of."""
        size = self.engine.tensor_parallel_size
        if size == 1:
            return
        if not hasattr(self.model.module, "CUT"):
            raise ValueError(
                f"engine.tensor_parallel_size is {size}, but nothing says how to cut the weights "
                f"of model.name {self.model.name}; use 1, or model.name transformer"
            )
        for name in self.model.module.CUT:
            count = getattr(self.model.config, name)
            if count % size:
                fitting = [n for n in range(1, count + 1) if count % n == 0]
                raise ValueError(
                    f"engine.tensor_parallel_size {size} does not divide model.{name} {count}; "
                    f"use one of {', '.join(map(str, fitting))}"
                )
        if self.attention.every_steps:
            raise ValueError(
                "attention.every_steps draws all heads, of which a rank has some with "
                f"engine.tensor_parallel_size {size}; set it to 0"
            )

    @classmethod
    def variants(cls) -> "dict[str, type[TrainingConfig]]":
        """The schema of each kind of dataset."""
        return {"text": TextTrainingConfig, "image": ImageTrainingConfig}

    @classmethod
    def variant(cls, tree: dict[str, Any]) -> "type[TrainingConfig]":
        """The schema for a config, by its task."""
        task = tree.get("task")
        name = str(task.get("name")) if isinstance(task, dict) else ""
        known = name in plugin_names("training.tasks")
        kind = importlib.import_module(f"training.tasks.{name}").KIND if known else "text"
        return cls.variants()[kind]


@dataclass(frozen=True, kw_only=True)
class TextTrainingConfig(TrainingConfig):
    """One run on text."""

    data: TextDataConfig
    """The dataset and how it is read."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Generated text."""

    def __post_init__(self) -> None:
        """Refuse sequences that the model is too short for."""
        super().__post_init__()
        longest = getattr(self.model.config, "max_positions", math.inf)
        if self.data.sequence_length > longest:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}, but model.max_positions is "
                f"{longest}; raise the one or lower the other"
            )
        if self.attention.every_steps and self.model.module.OUTPUT != "tokens":
            raise ValueError(
                f"attention.every_steps draws what a decoder looks at, and model.name "
                f"{self.model.name} is none; set it to 0"
            )
        size = self.engine.sequence_parallel_size
        if size > 1 and not hasattr(self.task.module.Task, "share"):
            raise ValueError(
                f"engine.sequence_parallel_size is {size}, but task.name {self.task.name} has no "
                "way to share its sequences; use 1"
            )
        num_heads = getattr(self.model.config, "num_heads", size)
        if num_heads % size:
            raise ValueError(
                f"engine.sequence_parallel_size {size} does not divide model.num_heads "
                f"{num_heads}, which its ranks share"
            )
        if self.data.sequence_length % size:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} is no multiple of "
                f"engine.sequence_parallel_size {size}, whose ranks share it"
            )


@dataclass(frozen=True, kw_only=True)
class ImageTrainingConfig(TrainingConfig):
    """One run on images, which are taken at the image size of the model."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How images are modified in training."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    """Pictures of what the model sees and makes."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """How well features of the model, and of the average of its weights, tell classes apart."""

    def __post_init__(self) -> None:
        """Refuse to divide what has no order, and to shift images out of sight."""
        super().__post_init__()
        if self.engine.sequence_parallel_size > 1:
            raise ValueError(
                "engine.sequence_parallel_size divides sequences of text, not images; use 1"
            )
        padding, size = self.augment.padding, self.model.config.image_size
        if self.augment.crop == "random_padded" and padding >= size:
            raise ValueError(
                f"augment.padding is {padding}, by which images of model.image_size {size} are "
                f"shifted out of sight; use at most {size - 1}"
            )
