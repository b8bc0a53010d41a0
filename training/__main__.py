"""`python -m training CONFIG`: train, under `deepspeed --module`, under torchrun, or alone."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import atexit
import os
import sys
import warnings

from configs import command, interrupts
from training import distributed
from training.config import TrainingConfig
from training.run_lock import hold_run_dir

PROG = "python -m training"
DOC = """Train a model on a dataset with DeepSpeed ZeRO.

  deepspeed --module training CONFIG [key=value ...]     on all devices of this machine
  torchrun --nproc_per_node N -m training CONFIG         the same, by torch's launcher
  python -m training CONFIG                              one process"""


def main() -> None:
    """Load the config, build the parts, train."""
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    config, _ = command.parse(TrainingConfig, arguments, prog=PROG, doc=DOC)
    who = "" if distributed.is_rank_zero() else f"rank {distributed.rank()}: "
    command.run(lambda: train(config), who=who)
    atexit.register(distributed.leave)


def train(config: TrainingConfig) -> None:
    """Build the parts and train until the last step."""
    _quiet()
    distributed.die_with_launcher()
    from training import assembly, engine  # noqa: PLC0415  (deepspeed takes seconds to import)
    from training.resume import resume  # noqa: PLC0415

    interrupts.hand_over()
    engine.initialize_distributed()
    run = assembly.open_run(config)
    with hold_run_dir(run.dir):
        parts = assembly.build_engine(config, run)
        state = resume(config, run.dir, run.manifest, parts)
        with assembly.build_loader(config, run, state) as loader:
            assembly.build_trainer(config, run, parts, state, loader).fit()


def _quiet() -> None:
    """Only our lines and real warnings reach the console."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
