"""`python -m training CONFIG`: train, under `deepspeed --module`, under torchrun, or alone."""

import os

if __name__ == "__main__":
    from configs import interrupts

    interrupts.expect()  # Ctrl-C during the imports below, which take seconds
    # Torch, as it is imported: a warning of c10d that a rank is gone is pages of C++ frames, before
    # the line that says which.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import atexit
import sys
import warnings

import configs
from configs import command, interrupts
from training import distributed, restarts
from training.config import TrainingConfig
from training.preflight import check_nodes
from training.run_lock import hold_run_dir
from training.stop import Stop

PROG = "python -m training"
DOC = """Train a model on a dataset with DeepSpeed ZeRO.

  deepspeed --module training CONFIG [key=value ...]     on all devices of this machine
  torchrun --nproc_per_node N -m training CONFIG         the same, by torch's launcher
  python -m training --restarts N CONFIG                 the same, and again where a rank crashes
  python -m training CONFIG                              one process"""


def main() -> None:
    """Load the config, build the parts, train; or launch ranks that do."""
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if restarts.is_wanted(arguments):
        options, arguments = restarts.split(arguments)
        command.parse(TrainingConfig, arguments, prog=PROG, doc=DOC)  # a mistake is told once
        interrupts.hand_over()
        command.run(lambda: restarts.launch(options, arguments))
        return
    config, _ = command.parse(
        TrainingConfig, arguments, prog=PROG, doc=f"{DOC}\n\n{restarts.USAGE}"
    )
    who = "" if distributed.is_rank_zero() else f"rank {distributed.rank()}: "
    command.run(lambda: train(config), who=who)
    atexit.register(distributed.leave)


def train(config: TrainingConfig) -> None:
    """Build the parts and train until the last step, or until the run is told to stop."""
    _quiet()
    distributed.die_with_launcher()
    from training import assembly, engine  # noqa: PLC0415  (deepspeed takes seconds to import)
    from training.hooks.watchdog import Watchdog  # noqa: PLC0415

    interrupts.hand_over()
    stop = Stop(config.max_hours)
    with distributed.meeting():
        engine.initialize_distributed()
    with stop.listening(), Watchdog(config.watchdog, stop) as watchdog:
        run = assembly.open_run(config)
        with hold_run_dir(run.dir):
            tree = configs.to_dict(config)
            check_nodes(config.preflight, run.dir, run.manifest.fingerprint, tree)
            parts = assembly.build_engine(config, run)
            parts.wishes_stop = stop.is_wished
            state = assembly.fit(config, run, parts, watchdog)
        stop.tell(state, num_steps=config.num_steps)


def _quiet() -> None:
    """Only our lines and real warnings reach the console."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
