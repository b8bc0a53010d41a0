"""`python -m training.verify RUN`: reads every byte of a run's checkpoints and says which are good.

Exit code 1 where one is damaged, 2 where there is none.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from configs.command import run
from training.checkpoint import SUMMARY, find_faults, list_checkpoints, read_state


def main() -> None:
    """Parse the command line, verify, print a line for each checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m training.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, or one checkpoint")
    folder = parser.parse_args().run
    faults = dict(verify(folder))
    for checkpoint_dir, found in faults.items():
        print(f"{checkpoint_dir}: {'; '.join(found) if found else _describe(checkpoint_dir)}")
    good = [checkpoint_dir for checkpoint_dir, found in faults.items() if not found]
    last = f"; the last good one is {good[-1].name}" if good else ""
    print(f"{len(good)} of {len(faults)} checkpoints are good{last}")
    sys.exit(0 if len(good) == len(faults) else 1)


def verify(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The checkpoints of a run folder, oldest first, or the one that the path itself is.

    Raises:
        FileNotFoundError: no complete checkpoint there.
    """
    one = (folder / SUMMARY).exists()
    found = [folder] if one else list_checkpoints(folder / "checkpoints")
    if not found:
        raise FileNotFoundError(f"{folder}: no checkpoint; give a run folder or a checkpoint")
    for checkpoint_dir in found:
        yield checkpoint_dir, find_faults(checkpoint_dir)


def _describe(checkpoint_dir: Path) -> str:
    state = read_state(checkpoint_dir)
    num_bytes = sum(path.stat().st_size for path in checkpoint_dir.rglob("*") if path.is_file())
    return (
        f"good, {num_bytes / 2**30:.2f} GiB, {state.samples_seen:,} samples seen, written by "
        f"{state.where}"
    )


if __name__ == "__main__":
    run(main)
