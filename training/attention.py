"""`python -m training.attention RUN IMAGE [--out DIR]`: what each head looks at, or in `--prompt`.

A picture is brightest at its own largest weight: colours compare places, not heads.
"""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from configs import interrupts
from configs.command import run
from training.attention_maps import look_at_image, look_at_text
from training.augment.on_device import normalise
from training.config import ImageTrainingConfig, TextTrainingConfig
from training.image_files import add_max_pixels, decode_images, find_images
from training.output import choose_output
from training.run_dir import TrainedModel, load_model, load_run_codec
from training.text import encode_prompt

OUT = "attention"


def main() -> None:
    """Parse the command line, load the run, write the pictures."""
    interrupts.hand_over()
    arguments = _parser().parse_intermixed_args()
    out = choose_output(arguments.out, OUT, is_folder=True)
    trained = load_model(arguments.run, averaged=arguments.ema)
    if isinstance(trained.config, TextTrainingConfig):
        pictures = _of_text(trained, trained.config, arguments)
    else:
        assert isinstance(trained.config, ImageTrainingConfig), "there are two kinds"
        pictures = _of_image(trained, trained.config, arguments)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        PIL.Image.fromarray(picture.numpy()).save(out / f"{name}.png")
    sys.stdout.write(f"{len(pictures)} pictures in {out}\n")


def _of_image(
    trained: TrainedModel, config: ImageTrainingConfig, arguments: argparse.Namespace
) -> dict[str, Tensor]:
    if arguments.image is None or arguments.prompt is not None:
        raise ValueError(f"{arguments.run}: is a run on images; give the path of one, no --prompt")
    if not Path(arguments.image).is_file():
        raise FileNotFoundError(f"{arguments.image}: no such file")
    images = find_images([arguments.image])
    most = arguments.max_pixels
    (decoded,) = decode_images(images, config, micro_batch_size=1, max_pixels=most)
    if decoded.faults:
        raise ValueError(decoded.faults[0])
    pixels = decoded.pixels.to(next(trained.model.parameters()).device)
    normal = normalise(pixels, mean=config.augment.mean, std=config.augment.std)
    return look_at_image(trained.model, decoded.pixels[0], normal, with_rollout=arguments.rollout)


def _of_text(
    trained: TrainedModel, config: TextTrainingConfig, arguments: argparse.Namespace
) -> dict[str, Tensor]:
    if arguments.prompt is None or arguments.image is not None:
        raise ValueError(f"{arguments.run}: is a run on text; give a --prompt, and no image")
    if config.model.module.OUTPUT != "tokens":
        what = f"a run of {config.model.name}; of text what a decoder alone looks at is drawn"
        raise ValueError(f"{arguments.run}: is {what}")
    codec = load_run_codec(trained)
    numbers = encode_prompt(codec, arguments.prompt, context=config.data.sequence_length)
    tokens = torch.tensor([numbers], device=next(trained.model.parameters()).device)  # (1, T)
    names = codec.names(numbers)
    return look_at_text(trained.model, {"tokens": tokens}, names, with_rollout=arguments.rollout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.attention", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="file, for a run on images")
    parser.add_argument("--prompt", help="text whose tokens are looked at, for a run on text")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help=f"folder of the PNGs, which replace others; default: {OUT} here, if it is free",
    )
    parser.add_argument("--rollout", action="store_true", help="also through all layers at once")
    add_max_pixels(parser)
    parser.add_argument("--ema", action="store_true", help="take the average of the weights")
    return parser


if __name__ == "__main__":
    run(main)
