"""`python -m training.progress RUN`: how far a run is, for scripts that start it again.

Exit code 0 where its last step has a checkpoint, 3 where steps are left, 2 where there is no run.
"""

import argparse
import sys
from pathlib import Path

import yaml

from configs.command import run
from training.checkpoint import CONFIG, list_checkpoints, step_of

UNFINISHED = 3


def main() -> None:
    """Parse the command line and print a line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.progress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    folder = parser.parse_args().run
    step, num_steps = progress(folder)
    print(f"{folder}: checkpoint of step {step:,} of {num_steps:,}")
    sys.exit(0 if step >= num_steps else UNFINISHED)


def progress(run_dir: Path) -> tuple[int, int]:
    """The step of the newest checkpoint, 0 without one, and the number of steps of the run.

    Raises:
        FileNotFoundError: no run was ever started there.
    """
    if not (run_dir / CONFIG).exists():
        raise FileNotFoundError(f"{run_dir}: no run folder, it has no {CONFIG}")
    found = list_checkpoints(run_dir / "checkpoints")
    num_steps = int(yaml.safe_load((run_dir / CONFIG).read_text())["num_steps"])
    return (step_of(found[-1]) if found else 0), num_steps


if __name__ == "__main__":
    run(main)
