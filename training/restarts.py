"""`python -m training --restarts N ...`: our launcher of ranks on this machine, torchrun's agent.

A rank that ends with an error, or is killed, ends the others, and all start again from the last
good checkpoint, up to N times; behind a mistake, or where the run was to stop, they do not. SIGTERM
and SIGUSR1 are passed on to the ranks, which stop with a checkpoint; torchrun itself would end its
ranks 30 s later, and with an error.
"""

import argparse
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from configs.command import AGAIN, MISTAKE, fail
from training import distributed
from training.stop import SAME_SECONDS, SIGNALS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

USAGE = """The launcher of `python -m training`:

  --restarts N            start all ranks again, up to N times, where one crashes, hangs or is
                          killed; not behind exit code 2: a mistake, or anomalies that stop a run
  --nproc-per-node K      ranks on this machine: a number, or auto (default): its GPUs or cores
  --nnodes N or MIN:MAX   machines; each runs this command
  --rdzv-endpoint HOST:PORT   where they meet, with more than one machine; HOST is one of them
  --rdzv-id ID            a name of the run, with more than one machine"""


def is_wanted(argv: Sequence[str]) -> bool:
    """Whether a command line asks for the launcher."""
    return any(word.split("=")[0] == "--restarts" for word in argv)


def split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and what is for each rank."""
    parser = argparse.ArgumentParser(prog="python -m training", add_help=False, allow_abbrev=False)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--nproc-per-node", "--nproc_per_node", default="auto")
    parser.add_argument("--nnodes", default="1")
    parser.add_argument("--rdzv-endpoint", "--rdzv_endpoint", default="")
    parser.add_argument("--rdzv-id", "--rdzv_id", default="millrace")
    options, rest = parser.parse_known_args(argv)
    if options.restarts < 0:
        parser.error(f"--restarts must be 0 or more, found {options.restarts}")
    if options.nnodes != "1" and not options.rdzv_endpoint:
        parser.error("--nnodes above 1 needs --rdzv-endpoint HOST:PORT, where the machines meet")
    return options, rest


def launch(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Run the ranks until they are done; an error of theirs is the exit code."""
    from torch.distributed import run  # noqa: PLC0415  (it takes seconds to import)
    from torch.distributed.elastic.multiprocessing import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import (  # noqa: PLC0415
        ChildFailedError,
    )
    from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: PLC0415

    _end_at_mistakes()
    distributed.hand_to_ranks()
    handler = _PassOn()
    for number in SIGNALS:
        signal.signal(number, handler)
    words = ["--max-restarts", str(options.restarts), "--nproc-per-node", options.nproc_per_node]
    words += ["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT"]  # ours are not the agent's
    if options.rdzv_endpoint:
        words += ["--nnodes", options.nnodes, "--rdzv-backend", "c10d"]
        words += ["--rdzv-endpoint", options.rdzv_endpoint, "--rdzv-id", options.rdzv_id]
    else:
        words += ["--standalone"]
    try:
        run.run(run.parse_args([*words, "--module", "training", *arguments]))  # type: ignore[no-untyped-call]
    except (socket.gaierror, RendezvousError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        fail(
            f"error: machines did not meet at --rdzv-endpoint {options.rdzv_endpoint}: {cause}; "
            f"its host, and {socket.gethostname()}, the name of this one, need addresses that all "
            "machines know and reach",
            code=AGAIN,  # a machine may come late, or come back
        )
    except SignalException as error:  # Ctrl-C, or the terminal is gone
        fail("interrupted", code=128 + error.sigval)
    except ChildFailedError as error:
        _tell_failure(error, options.restarts)


def _end_at_mistakes() -> None:
    """Let the agent start ranks again behind no mistake; torchrun's does behind any code but 0."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import (  # noqa: PLC0415
        LocalElasticAgent,
    )
    from torch.distributed.launcher import api  # noqa: PLC0415

    class Agent(LocalElasticAgent):
        def _monitor_workers(self, worker_group: Any) -> Any:
            result = super()._monitor_workers(worker_group)
            if _mistaken(result.failures):
                self._remaining_restarts = 0
            return result

    api.LocalElasticAgent = Agent  # type: ignore[attr-defined]


def _mistaken(failures: Mapping[int, Any]) -> list[int]:
    """Ranks that ended with the code of a mistake."""
    return [rank for rank, failure in failures.items() if failure.exitcode == MISTAKE]


def _tell_failure(error: "ChildFailedError", restarts: int) -> None:
    if mistaken := _mistaken(error.failures):
        fail(
            f"error: rank {min(mistaken)} ended with code {MISTAKE}, which no restart mends; its "
            "error is above"
        )
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    fail(
        f"error: rank {rank} {how}, after {restarts} restarts; its error is above",
        code=AGAIN if code < 0 else code,
    )


class _PassOn:
    """Tells the ranks of a signal, also those that start later; a second one ends all at once."""

    def __init__(self) -> None:
        self.first = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first:
            if now - self.first > SAME_SECONDS:
                os._exit(128 + number)  # and the ranks with it
            return
        self.first = now
        distributed.hand_to_ranks(stop=signal.Signals(number).name)
        for rank in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
