"""`python -m training.attention RUN --prompt TEXT --out DIR`: what each head looks at."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys
from pathlib import Path

import PIL.Image
import torch

from configs import interrupts
from configs.command import run
from training.attention_maps import attend, pictures_of_text
from training.config import TextTrainingConfig
from training.run_dir import TrainedModel, load_model
from training.text import encode_prompt, load_codec


def main() -> None:
    """Parse the command line, load the run, write the pictures."""
    interrupts.hand_over()
    arguments = _parser().parse_args()
    pictures = _of_text(load_model(arguments.run, averaged=arguments.ema), arguments)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        PIL.Image.fromarray(picture.numpy()).save(out / f"{name}.png")
    sys.stdout.write(f"{len(pictures)} pictures in {out}\n")


def _of_text(trained: TrainedModel, arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    config = trained.config
    if not isinstance(config, TextTrainingConfig):
        what = f"a run of task {config.task.name}, which reads no text"
        raise ValueError(f"{arguments.run}: is {what}")  # noqa: TRY004  (a user's mistake)
    codec = load_codec(config.data.dataset_dir)
    numbers = encode_prompt(codec, arguments.prompt, context=config.data.sequence_length)
    device = next(trained.model.parameters()).device
    tokens = torch.tensor([numbers], device=device)  # (1, T)
    weights = attend(trained.model, trained.model.features, tokens)  # type: ignore[arg-type]
    names = [codec.tokenizer.decode([number]) for number in numbers]
    return pictures_of_text(weights, names, with_rollout=arguments.rollout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.attention", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("--prompt", required=True, help="the text whose tokens are looked at")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the PNGs")
    parser.add_argument("--rollout", action="store_true", help="also through all layers at once")
    parser.add_argument("--ema", action="store_true", help="take the average of the weights")
    return parser


if __name__ == "__main__":
    run(main)
