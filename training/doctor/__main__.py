"""`python -m training.doctor [CONFIG]`: the command line."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

import configs
from configs import interrupts
from configs.command import run
from training.config import TrainingConfig
from training.doctor.deepspeed_file import check_deepspeed_file
from training.doctor.finding import show
from training.doctor.installation import check_installation, describe_torch
from training.doctor.machine import check_devices, check_disk
from training.doctor.parity import cases_of, check_parity
from training.doctor.run_config import check_config

DOC = """Check the installation, this machine, a config, and that every way to train gives the same
losses: ZeRO stages, one rank and several, accumulation, activation checkpointing, compilation,
zero_init, the average of the weights; bf16 and, where the device computes it, fp16 within rounding.

  python -m training.doctor                                this machine
  python -m training.doctor CONFIG [key=value ...]         and whether this run can start on it
  python -m training.doctor --deepspeed-config FILE        and what is wrong in a DeepSpeed config

Exit code 1 if something is a fault."""


def main() -> None:
    """Run the checks, show a table of each, exit with 1 behind a fault."""
    interrupts.hand_over()
    arguments = _parser().parse_intermixed_args()
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    ranks = arguments.ranks or max(torch.cuda.device_count(), 0) or 2
    config = None
    if arguments.config:
        config = configs.load(TrainingConfig, Path(arguments.config), arguments.overrides)
    faults = show("installation", [*check_installation(), describe_torch()], console)
    folder = Path(config.run_dir if config else ".")
    faults += show("machine", [*check_devices(), *check_disk(folder)], console)
    if config:
        faults += show(arguments.config, check_config(config, ranks), console)
    if arguments.deepspeed_config:
        findings = check_deepspeed_file(Path(arguments.deepspeed_config))
        faults += show(arguments.deepspeed_config, findings, console)
    if not arguments.no_parity:
        console.print(
            f"training a tiny model in every way, on 1 and on {ranks} ranks: a minute ..."
        )
        names = cases_of("cuda" if torch.cuda.is_available() else "cpu")
        faults += show("parity", check_parity(ranks, names), console)
    console.print(f"{faults} fault{'' if faults == 1 else 's'}" if faults else "no fault")
    sys.exit(1 if faults else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.doctor",
        description=DOC,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="of training, YAML")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of single keys"
    )
    parser.add_argument(
        "--ranks", type=int, default=0, help="of the parity check; default: all GPUs, or 2 on a CPU"
    )
    parser.add_argument("--no-parity", action="store_true", help="without the training of models")
    parser.add_argument("--deepspeed-config", metavar="FILE", help="a DeepSpeed config, JSON")
    return parser


if __name__ == "__main__":
    run(main)
