"""`python -m training.generate RUN --prompt "..."`: text from a trained model."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys

from configs import interrupts
from configs.command import run
from training.config import TextTrainingConfig
from training.run_dir import load_model, load_run_codec
from training.text import Drawing, complete

PROMPT = (
    "text to continue; empty starts a document. For an encoder-decoder text with gaps, each "
    "written <extra_id_0>, <extra_id_1> and so on, which it fills; without one, at the end"
)


def main() -> None:
    """Parse the command line, load the run, print the text."""
    interrupts.hand_over()
    arguments = _parser().parse_args()
    if arguments.num_samples < 1:
        raise ValueError(f"num_samples is {arguments.num_samples}; it must be at least 1")
    for index in (0, arguments.num_samples - 1):  # told before seconds of loading
        _drawing(arguments, index)
    trained = load_model(arguments.run, averaged=arguments.ema)
    config = trained.config
    if not isinstance(config, TextTrainingConfig):
        what = f"a run of task {config.task.name}, which writes no text"
        raise ValueError(f"{arguments.run}: is {what}")  # noqa: TRY004  (a user's mistake)
    codec = load_run_codec(trained)
    for index in range(arguments.num_samples):
        text = complete(
            trained.model,
            codec,
            arguments.prompt,
            context=config.data.sequence_length,
            drawing=_drawing(arguments, index),
        )
        sys.stdout.write(text + "\n")
        if index + 1 < arguments.num_samples:
            sys.stdout.write("-" * 20 + "\n")


def _drawing(arguments: argparse.Namespace, index: int) -> Drawing:
    return Drawing(
        num_tokens=arguments.num_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed + index,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.generate", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument("--prompt", default="", help=PROMPT)
    parser.add_argument("--num-tokens", type=int, default=200, help="length of the continuation")
    parser.add_argument("--num-samples", type=int, default=1, help="texts, with seeds counted up")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token"
    )
    parser.add_argument("--top-k", type=int, default=0, help="among so many tokens; 0 among all")
    parser.add_argument("--top-p", type=float, default=1.0, help="among this share of probability")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    parser.add_argument("--ema", action="store_true", help="take the average of the weights")
    return parser


if __name__ == "__main__":
    run(main)
