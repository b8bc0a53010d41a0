"""The run folder: config, tokenizer, checkpoints, metrics and events of one run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import configs
from training import checkpoint
from training.config import ImageTrainingConfig, TrainingConfig
from training.engine import load_weights
from training.run_dataset import find_tokenizer
from training.text import TextCodec, build_codec


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model of a run, ready for use."""

    model: nn.Module
    config: TrainingConfig
    step: int
    checkpoint_dir: Path


def load_model(run: str | Path, *, averaged: bool = False) -> TrainedModel:
    """The model of a run's newest good checkpoint, or of one checkpoint, in fp32 and eval mode.

    Where `averaged`, it has the average of its weights (section `ema`).

    Raises:
        FileNotFoundError: no complete checkpoint there, or no average in it.
    """
    folder = find_checkpoint(Path(run))
    config = configs.load(TrainingConfig, folder / checkpoint.CONFIG)
    model = config.model.module.Model(config.model.config)
    model.load_state_dict(load_weights(folder, averaged=averaged))
    step = checkpoint.read_state(folder).step
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainedModel(model.to(device).eval(), config, step, folder)


def load_run_codec(trained: TrainedModel) -> TextCodec:
    """The tokenizer that a run on text was trained with.

    Raises:
        FileNotFoundError: neither the run nor its dataset is there to tell.
        ValueError: what they tell is damaged.
    """
    content, described = find_tokenizer(trained.checkpoint_dir, trained.config)
    return build_codec(content, described)


def load_image_model(
    run: str | Path, *, averaged: bool = False
) -> tuple[nn.Module, ImageTrainingConfig]:
    """As `load_model`, of a run on images alone.

    Raises:
        ValueError: the run is one on something else.
    """
    trained = load_model(run, averaged=averaged)
    if not isinstance(trained.config, ImageTrainingConfig):
        what = f"a run of task {trained.config.task.name}, which sees no images"
        raise ValueError(f"{run}: is {what}")  # noqa: TRY004  (a user's mistake)
    return trained.model, trained.config


def find_checkpoint(run: Path) -> Path:
    """The newest good checkpoint of a run folder, or the one that the path itself is.

    Every rank calls it.

    Raises:
        FileNotFoundError: no complete checkpoint there.
        ValueError: the checkpoint is damaged.
    """
    if (run / checkpoint.SUMMARY).exists():
        faults = checkpoint.find_faults(run)
        if faults:
            raise ValueError(f"{run}: damaged: {'; '.join(faults)}")
        return run
    found = checkpoint.find_last_good(run / "checkpoints", warn=print)
    if found is None:
        raise FileNotFoundError(f"{run}: no complete checkpoint; give a run folder or a checkpoint")
    return found
