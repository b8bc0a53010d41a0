"""`python -m training.plan CONFIG`: the memory of a run before it runs, and the fastest plan."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import atexit
import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import configs
from configs import command, interrupts
from training import distributed
from training.config import TrainingConfig
from training.memory import report
from training.memory.doubts import describe_doubts
from training.memory.explanation import explain
from training.memory.forward_backward import predict_forward_backward
from training.memory.machine import GIB, LARGEST_GIB, Machine
from training.memory.prediction import predict
from training.memory.search import Plan, search, smallest
from training.memory.trace import trace_forward_backward
from training.memory.zero import Ranks

PROG = "python -m training.plan"
DOC = """Predict the peak memory of each rank of a run, and say what rules it and why.

  python -m training.plan CONFIG --gpus 8       by formula: instant, without dataset or GPU
  python -m training.plan CONFIG --trace        with forward and backward by fake tensors beside it
  python -m training.plan CONFIG --probe        three real steps on the device that is here
  python -m training.plan CONFIG --gpus 8 --search --out BEST.yaml     the fastest plan that fits

The search changes ZeRO stage, micro batch, activation checkpointing, offload and the chunks of the
loss: never the global batch, so that all plans train the same.
Blocks are compiled below stage 3 alone."""


MACHINE = {"gpus": 1, "gpu_memory_gib": 80.0, "gpus_per_node": 8, "host_memory_gib": 200.0}
"""The machine of a plan where the command line says nothing."""


def main() -> None:
    """Parse the command line and print what it asks for."""
    interrupts.hand_over()
    config, arguments = command.parse_with_flags(
        TrainingConfig, sys.argv[1:], prog=PROG, doc=DOC, add_flags=_add_flags
    )
    command.run(lambda: plan(config, arguments))


def plan(config: TrainingConfig, arguments: argparse.Namespace) -> None:
    """Each of the levels that the command line names."""
    console = Console(width=max(Console().width, 160), highlight=False)
    if arguments.out and not arguments.search:
        raise ValueError("--out writes the winner of a search; add --search")
    if arguments.out and not Path(arguments.out).parent.is_dir():
        raise ValueError(f"--out {arguments.out}: no such folder")
    if arguments.out and Path(arguments.out).is_dir():
        raise ValueError(f"--out {arguments.out}: is a folder; name a file in it")
    if arguments.probe:
        _check_probe(arguments)
        return _probe(config)
    machine = _machine(arguments)
    if arguments.search or arguments.trace:
        _check_alone(config)
    if arguments.search:
        return _search(config, machine, console, arguments.out)
    _predict(config, machine, console)
    if arguments.trace:
        _trace(config)
    return None


def _check_probe(arguments: argparse.Namespace) -> None:
    """Refuse what a probe of the devices that are here would leave aside."""
    given = vars(arguments)
    others = [name for name in MACHINE if given[name] != MACHINE[name]]
    others += [name for name in ("search", "trace") if given[name]]
    if others:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(f"--probe measures the devices that are here; leave {named} away")


def _check_alone(config: TrainingConfig) -> None:
    """Refuse what a search or a trace would be wrong about."""
    if config.engine.ranks_per_sample > 1:
        raise ValueError(
            "--search and --trace know ranks with sequences and weights of their own; set "
            "engine.sequence_parallel_size=1 and engine.tensor_parallel_size=1, or leave them away"
        )


def _predict(config: TrainingConfig, machine: Machine, console: Console) -> None:
    prediction = predict(config, machine.ranks)
    batch = config.batch
    print(
        f"{config.model.name} of {prediction.num_parameters:,} parameters on {machine.world_size} "
        f"GPUs, ZeRO stage {config.engine.zero_stage}, {config.engine.precision}, activation "
        f"checkpointing {config.engine.activation_checkpointing}, micro batch "
        f"{batch.micro_batch_size} of {batch.global_batch_size}"
    )
    console.print(report.breakdown_table(prediction, machine))
    console.print(report.points_table(prediction))
    print(explain(prediction, config, world_size=machine.world_size))
    print(report.describe_fit(prediction.peak, machine))
    _print_doubts(config)


def _trace(config: TrainingConfig) -> None:
    """The formula's forward and backward with the kernels of the CPU, against fake tensors; both of
    blocks and a loss that are not compiled.
    """
    config = replace(config, engine=replace(config.engine, compile="none"))
    formula = predict_forward_backward(config, device="cpu").num_bytes
    started = time.perf_counter()
    traced = trace_forward_backward(config)
    print(
        "Forward and backward of one micro batch without engine and compiler, kernels of the CPU: "
        f"formula {formula / GIB:.3f} GiB, fake tensors {traced / GIB:.3f} GiB, "
        f"{formula / traced - 1:+.2%} "
        f"({time.perf_counter() - started:.1f} s)"
    )


def _probe(config: TrainingConfig) -> None:
    from training import engine  # noqa: PLC0415  (deepspeed takes seconds to import)
    from training.memory import probe  # noqa: PLC0415

    engine.initialize_distributed()
    atexit.register(distributed.leave)
    short = probe.shorten(config)
    predict(short, Ranks(distributed.world_size()))  # what has no formula is told before the steps
    measured, device = max(distributed.gather(probe.measure_peak(short)))
    predicted = predict(short, Ranks(distributed.world_size(), device)).peak
    if distributed.is_rank_zero():
        how = "its allocator's peak" if device == "cuda" else "tensors counted at each operation"
        print(
            f"Three steps on {distributed.world_size()} {device} ranks ({how}): measured "
            f"{measured / GIB:.3f} GiB, predicted {predicted.num_bytes / GIB:.3f} GiB, "
            f"{predicted.num_bytes / measured - 1:+.2%}; the predicted peak is in the "
            f"{predicted.moment}"
        )
        if device == "cpu" and "cpu" in (
            config.engine.offload_optimizer,
            config.engine.offload_parameters,
        ):
            print(
                "Here the host is the device: what is offloaded to it was counted, not predicted."
            )


def _search(config: TrainingConfig, machine: Machine, console: Console, out: str) -> None:
    started = time.perf_counter()
    plans = search(config, machine)
    if not plans:
        raise ValueError(_fits_nowhere(smallest(config, machine), machine))
    console.print(report.ranking_table(plans))
    print(report.describe_machine(machine))
    best = plans[0]
    print(explain(best.prediction, best.config, world_size=machine.world_size))
    print(report.describe_fit(best.prediction.peak, machine))
    _print_doubts(best.config)
    print(f"Searched in {time.perf_counter() - started:.1f} s.")
    if out:
        header = (
            f"# Planned by python -m training.plan --search for {machine.world_size} GPUs of "
            f"{machine.memory_gib:g} GiB: {best.prediction.peak.num_bytes / GIB:.1f} GiB each.\n"
        )
        Path(out).write_text(header + configs.to_yaml(best.config))
        print(f"The first of them is written to {out}")


def _print_doubts(config: TrainingConfig) -> None:
    if doubts := describe_doubts(config):
        print(doubts)


def _fits_nowhere(least: Plan, machine: Machine) -> str:
    needed = least.prediction
    engine = least.config.engine
    need = needed.peak.num_bytes / 0.96 / GIB + machine.context_bytes / GIB
    return (
        f"{least.config.model.name} of {needed.num_parameters:,} parameters fits on "
        f"{machine.world_size} GPUs of {machine.memory_gib:g} GiB by no plan; the smallest needs "
        f"{need:.2f} GiB a GPU and {needed.host_bytes / GIB:.0f} GiB of its host (of "
        f"{machine.host_memory_gib:g}): ZeRO stage {engine.zero_stage}, activation checkpointing "
        f"{engine.activation_checkpointing}, micro batch {least.config.batch.micro_batch_size}"
    )


def _machine(arguments: argparse.Namespace) -> Machine:
    return Machine(
        world_size=arguments.gpus,
        memory_gib=arguments.gpu_memory_gib,
        gpus_per_node=arguments.gpus_per_node,
        host_memory_gib=arguments.host_memory_gib,
    )


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=_ranks, metavar="N", help="ranks (1)")
    parser.add_argument("--gpu-memory-gib", type=_gib, metavar="M", help="of each, GiB (80)")
    parser.add_argument(
        "--gpus-per-node", type=_ranks, metavar="N", help="joined by fast links (8)"
    )
    parser.add_argument("--host-memory-gib", type=_gib, metavar="M", help="for each GPU, GiB (200)")
    parser.set_defaults(**MACHINE)
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument("--trace", action="store_true", help="also by fake tensors, in seconds")
    levels.add_argument("--probe", action="store_true", help="three real steps on this device")
    levels.add_argument("--search", action="store_true", help="rank the plans that fit")
    parser.add_argument("--out", default="", metavar="FILE", help="the winner's YAML")


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number of at least 1")
    return int(text)


def _gib(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < LARGEST_GIB:
            return float(text)
    told = f"found {text}, expected a number of GiB above 0 and below {LARGEST_GIB}"
    raise argparse.ArgumentTypeError(told)


if __name__ == "__main__":
    main()
