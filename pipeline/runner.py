"""Running Beam: the local runner by name, quiet workers, and errors as one line.

`DirectRunner` would download a binary where there is internet (Prism), so the default is
`FnApiRunner`, which never does. Its workers get no options: stages carry what they need.
"""

import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import apache_beam as beam
import grpc  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.fn_runner import RunnerResult
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from configs.redact import redact
from pipeline.engine_flags import read_flag
from pipeline.fork_server import ForkServer
from pipeline.own_wheel import staged
from pipeline.refused import RefusedError
from pipeline.stage_seconds import stage_seconds

GRACE_SECONDS = 10.0
"""Beam has so long to notice itself that a worker process died."""
STOP_SECONDS = 3.0
"""Beam has so long to end after Ctrl-C; nothing is lost without, as after any kill."""
DEATH = (
    "a worker process died, perhaps for lack of memory; run the same command again: what is "
    "finished is kept, and fewer num_workers need less memory"
)
ENGINE_MEMORY = (
    "; an engine holds the shard that it hands to a worker several times over: give task managers "
    "or executors more memory, or make shards smaller (docs/flink.md)"
)
NO_MEMORY = ("java.lang.OutOfMemoryError", "call is closed")
"""Of an engine; the second of what Flink repeats behind the first."""
NO_DOWNLOAD = ("fetch remote job server jar", "fetch remote prism binary")
DOWNLOADED = (
    "; Beam downloads it: without internet name a job server's jar by --flink_job_server_jar=PATH "
    "or --spark_job_server_jar=PATH, or start a job server and give --runner=PortableRunner "
    "--job_endpoint=HOST:PORT"
)
LOCAL_RUNNER = "FnApiRunner"

_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Interrupt|Exit)): ?(.*)$", re.MULTILINE)
_WHERE = re.compile(r" \[while running '([^']*)'\]")


@dataclass(frozen=True, slots=True)
class Engine:
    """Where and how wide Beam runs."""

    num_workers: int
    """Worker processes on this machine."""
    flags: tuple[str, ...]
    """Beam's own flags."""
    spills: bool
    """Payload through spill files instead of Beam's GroupByKey."""
    fork_server: ForkServer | None = None
    """Of more than one worker process on this machine."""


class StageError(RuntimeError):
    """What stopped a stage, told in one line."""


def uses_local_runner(flags: Sequence[str]) -> bool:
    """Whether the flags leave the build on this machine's own runner."""
    return read_flag(flags, "runner") in (None, LOCAL_RUNNER)


@contextmanager
def fork_server_of(num_workers: int, flags: Sequence[str]) -> Iterator[ForkServer | None]:
    """Open while a build may have so many worker processes on this machine."""
    fork_server = ForkServer() if num_workers > 1 and uses_local_runner(flags) else None
    try:
        yield fork_server
    finally:
        if fork_server is not None:
            fork_server.close()


def run_beam(
    construct: Callable[[beam.Pipeline], None], engine: Engine, error_log: Path
) -> dict[str, float]:
    """Construct a Beam pipeline and run it to its end; returns seconds by stage, where it can.

    Raises:
        StageError: a stage failed; the traceback is in `error_log`.
        RefusedError: a stage refused the corpus or the config.
    """
    with staged(engine.flags) as flags:
        return _run(construct, replace(engine, flags=flags), error_log)


def _run(
    construct: Callable[[beam.Pipeline], None], engine: Engine, error_log: Path
) -> dict[str, float]:
    options = PipelineOptions([f"--direct_num_workers={engine.num_workers}", *engine.flags])
    _export_path()
    _silence()
    runner = None if read_flag(engine.flags, "runner") else _local_runner(engine.fork_server)
    pipeline = beam.Pipeline(runner=runner, options=options)
    construct(pipeline)
    watch = _Watch(error_log)
    try:
        with watch:
            result = pipeline.run()
            with _cancelled_with_us(result):
                result.wait_until_finish()
    # whatever a worker raised, as Beam likes it
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        if watch.interrupted or (isinstance(error, KeyboardInterrupt) and not watch.died):
            raise KeyboardInterrupt from None
        name, message = innermost(error)
        if name == RefusedError.__name__ and not watch.died:
            raise RefusedError(message) from None
        watch.write_log(traceback.format_exc())
        raise StageError(DEATH if watch.died else one_line(error)) from None
    return stage_seconds(result.monitoring_infos()) if isinstance(result, RunnerResult) else {}


class _Watch:
    """Looks after Beam's own threads, which wait for worker processes.

    Their tracebacks say nothing to a user. One that tells of a worker's death fails the run, which
    Beam does itself later on, but not while workers start: there it would wait for ever. First the
    main thread is interrupted; if Beam then waits for other workers, the process ends.
    """

    def __init__(self, error_log: Path) -> None:
        self.error_log = error_log
        self.failures: list[str] = []
        self.died = False
        self.interrupted = False
        self.takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self.timers = [
            threading.Timer(GRACE_SECONDS, self._interrupt),
            threading.Timer(2 * GRACE_SECONDS, self._give_up),
        ]

    def __enter__(self) -> None:
        self.before = threading.excepthook
        threading.excepthook = self._fail
        if self.takes_interrupts:
            signal.signal(signal.SIGINT, self._stop)

    def __exit__(self, _: object, error: object, __: object) -> None:
        if self.takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Beam's threads complain to the end of the process, also where the job server is gone
        if not self.interrupted and not isinstance(error, grpc.RpcError):
            threading.excepthook = self.before
        for timer in self.timers:
            timer.cancel()

    def write_log(self, trace: str) -> None:
        """What the user is not shown."""
        with suppress(OSError):  # a full disk is told all the same
            told = redact("\n".join([trace, *self.failures]))
            self.error_log.write_text(told, encoding="utf-8")

    def _fail(self, failure: threading.ExceptHookArgs) -> None:
        self.failures.append("".join(traceback.format_exception(failure.exc_value)))
        told = "Worker subprocess exited" in str(failure.exc_value)
        if told and not self.died and not self.interrupted:
            self.died = True
            for timer in self.timers:
                timer.daemon = True
                timer.start()

    def _stop(self, *_: object) -> None:
        """Ctrl-C: Beam makes an error of its own of it, or goes on waiting for its workers."""
        if not self.died and not self.interrupted:
            self.interrupted = True
            exit_soon = threading.Timer(STOP_SECONDS, _exit_interrupted)
            exit_soon.daemon = True
            exit_soon.start()
        raise KeyboardInterrupt

    @staticmethod
    def _interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    def _give_up(self) -> None:
        self.write_log("Beam waited for its other workers\n")
        sys.stderr.write(f"error: {DEATH} (traceback: {self.error_log})\n")
        sys.stderr.flush()
        os._exit(1)  # the lock on the dataset and the workers end with this process


def _exit_interrupted() -> None:
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)  # the lock on the dataset and the workers end with this process


@contextmanager
def _cancelled_with_us(result: PipelineResult) -> Iterator[None]:
    """Ctrl-C: an engine would go on with the job, and write beside the next build."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(Exception):  # what it says is no news: the build ends
            result.cancel()
        raise


def one_line(error: BaseException) -> str:
    """The innermost message of an error that came through Beam, with its stage."""
    if isinstance(error, grpc.RpcError):
        return (
            "the job server is gone, or its connection; look at its log and whether the job still "
            "runs, and run the same command again"
        )
    name, message = innermost(error)
    if name == "ValueError":
        return message
    if name == "ModuleNotFoundError" and "'pipeline" in message:
        return (
            "workers have no Millrace: their Python needs `pip install 'millrace[pipeline]'`, in "
            "the versions of this one"
        )
    if any(sign in message for sign in NO_MEMORY):
        return f"{message}{ENGINE_MEMORY}"
    if any(sign in message for sign in NO_DOWNLOAD):
        return f"{message}{DOWNLOADED}"
    where = _WHERE.findall(str(error))
    stage = where[-1].split("/")[0].split("-")[0] if where else ""
    return f"{name}: {message} (stage {stage})" if stage else f"{name}: {message}"


def innermost(error: BaseException) -> tuple[str, str]:
    """Class name and message of the first cause of an error that came through Beam, in one line."""
    text = _WHERE.sub("", str(error))
    found = _ERROR.findall(text)
    name, message = found[-1] if found else (type(error).__name__, text)
    return name, " ".join(message.split())


def _local_runner(fork_server: ForkServer | None) -> FnApiRunner:
    """In this process for one worker, else in processes of our own."""
    if fork_server is None:
        return FnApiRunner()
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(fork_server.command()))


def _export_path() -> None:
    """Worker processes import this package from wherever it was started."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def _silence() -> None:
    """Beam's workers log some 45 lines at INFO, and a failure's traceback, which we tell better."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_is_not_of_beam)  # what engines say of a job comes by the root


def _is_not_of_beam(record: logging.LogRecord) -> bool:
    return f"{os.sep}apache_beam{os.sep}" not in record.pathname
