"""`python -m training.export RUN OUT --format huggingface`: a run's weights for the ecosystem."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import configs
from configs import interrupts
from configs.command import run
from training import checkpoint
from training.config import ImageTrainingConfig, TextTrainingConfig, TrainingConfig
from training.engine import load_weights
from training.huggingface import beside
from training.huggingface.destination import check_destination, whole_folder
from training.huggingface.layouts import find_layout
from training.huggingface.model_files import write_model
from training.huggingface.seen_images import PREPROCESSOR
from training.run_dataset import find_facts, find_tokenizer
from training.run_dir import find_checkpoint
from training.tasks.span_corruption import count_lengths

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = ("huggingface",)


@dataclass(frozen=True, slots=True)
class Beside:
    """What an export holds but weights."""

    config: dict[str, Any]
    """Keys of config.json that are not the model's."""
    files: beside.Files
    """Contents by name."""


def main() -> None:
    """Parse the command line, write the folder."""
    interrupts.hand_over()
    arguments = _parser().parse_args()
    if not arguments.max_shard_gib > 0:
        raise ValueError(f"max_shard_gib is {arguments.max_shard_gib}; it must be above 0")
    out = Path(arguments.out)
    check_destination(out)  # what cannot be is told before anything large is read
    found = find_checkpoint(Path(arguments.run))
    config = configs.load(TrainingConfig, found / checkpoint.CONFIG)
    layout = find_layout(config.model.name, config.model.config)
    others = _beside(config, found)
    state = load_weights(found, averaged=arguments.ema)
    about = {
        "format": arguments.format,
        "run": Path(config.run_dir).name,
        "step": checkpoint.read_state(found).step,
        "averaged": arguments.ema,
        "dtype": arguments.dtype,
    }
    with whole_folder(out, about) as folder:
        for name, content in others.files.items():
            (folder / name).write_bytes(content)
        num_numbers = write_model(
            folder,
            layout,
            config.model.config,
            state,
            others=others.config,
            dtype=DTYPES[arguments.dtype],
            max_shard_bytes=int(arguments.max_shard_gib * 2**30),
        )
    what = f"{layout.ARCHITECTURE} of step {about['step']}"
    size = f"{num_numbers:,} numbers in {arguments.dtype}"
    sys.stdout.write(f"{out}: {what}, {size}, read back and the same\n")


def _beside(config: TrainingConfig, found: Path) -> Beside:
    if isinstance(config, TextTrainingConfig):
        return _of_text(config, found)
    assert isinstance(config, ImageTrainingConfig), "there are two kinds"
    return _of_images(config, found)


def _of_text(config: TextTrainingConfig, found: Path) -> Beside:
    content, described = find_tokenizer(found, config)
    end = described.end_of_document
    num_tokens, special = described.vocab_size, {"bos_token_id": end, "eos_token_id": end}
    if config.model.module.OUTPUT == "target tokens":
        lengths = count_lengths(config.data.sequence_length, config.task.config)
        num_tokens += lengths.num_spans  # sentinels are drawn as well
        special |= {"decoder_start_token_id": end, "pad_token_id": end}
    generation = special | beside.generation_config(
        end_of_document=end,
        num_tokens=num_tokens,
        vocab_size=config.model.config.vocab_size,
    )
    files = beside.tokenizer_files(
        content, end_of_document=end, context_tokens=config.data.sequence_length
    )
    files["generation_config.json"] = beside.as_json(generation)
    return Beside(special, files)


def _of_images(config: ImageTrainingConfig, found: Path) -> Beside:
    model, extra = config.model.config, {}
    if config.model.module.OUTPUT == "classes":
        names = find_facts(found, config).classes
        extra = beside.class_names(names, model.num_classes)
    else:
        extra = {"norm_pix_loss": config.task.config.normalise_patches}
    preparation = beside.preprocessor_config(
        image_size=model.image_size,
        crop_ratio=config.augment.crop_ratio,
        mean=config.augment.mean,
        std=config.augment.std,
    )
    return Beside(extra, {PREPROCESSOR: beside.as_json(preparation)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("out", metavar="OUT", help="folder to write; an earlier export is replaced")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the folder")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights")
    parser.add_argument(
        "--max-shard-gib", type=float, default=5.0, help="size of a weight file, at most"
    )
    parser.add_argument("--ema", action="store_true", help="take the average of the weights")
    return parser


if __name__ == "__main__":
    run(main)
