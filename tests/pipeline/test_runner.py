import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest

from pipeline.refused import RefusedError
from pipeline.runner import (
    Engine,
    StageError,
    _cancelled_with_us,
    one_line,
    run_beam,
    uses_local_runner,
)
from pipeline.work import write_atomic
from pipeline.worker_versions import _compare, are_elsewhere, check_workers, versions

ROOT = Path(__file__).parents[2]
ENGINE = Engine(num_workers=1, flags=(), spills=True)


@pytest.mark.parametrize(
    ("flags", "local"),
    [
        ((), True),
        (("--runner=FnApiRunner",), True),
        (("--runner", "FnApiRunner"), True),
        (("--runner=FlinkRunner", "--flink_master=host:8081"), False),
        (("--runner", "DataflowRunner"), False),
    ],
)
def test_local_runner(flags, local):
    assert uses_local_runner(flags) is local


def fails(_):
    raise ValueError("text.jsonl: no column 'txt'\n  found: text")


def test_an_error_in_a_stage_is_its_message(tmp_path):
    log = tmp_path / "error.log"
    with pytest.raises(StageError) as raised:
        run_beam(lambda p: p | beam.Create([1]) | "Fail" >> beam.Map(fails), ENGINE, log)
    assert str(raised.value) == "text.jsonl: no column 'txt' found: text"
    assert "in fails" in log.read_text()


def refuses(_):
    raise RefusedError("too many\n  of them")


def test_what_a_stage_refuses_leaves_no_traceback(tmp_path):
    log = tmp_path / "error.log"
    with pytest.raises(RefusedError, match="^too many of them$"):
        run_beam(lambda p: p | beam.Create([1]) | "Refuse" >> beam.Map(refuses), ENGINE, log)
    assert not log.exists()


def test_one_line_of_what_worker_processes_send():
    text = (
        "Traceback (most recent call last):\n"
        '  File "apache_beam/runners/common.py", line 1498, in process\n'
        "    raise error\n"
        "FileNotFoundError: [Errno 2] No such file: 'a'\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        '  File "worker.py", line 1, in work\n'
        "OSError: [Errno 28] No space left on device "
        "[while running 'BuildShards/WriteShard-ptransform-7']\n"
    )
    expected = "OSError: [Errno 28] No space left on device (stage BuildShards)"
    assert one_line(RuntimeError(text)) == expected


def test_one_line_of_an_unknown_error():
    assert one_line(KeyError("x")) == "KeyError: 'x'"


@pytest.mark.parametrize(
    "fault",
    [
        "java.lang.OutOfMemoryError: Java heap space",
        "java.lang.IllegalStateException: call is closed",
    ],
)
def test_an_engine_without_memory_is_told_what_to_do(fault):
    told = one_line(RuntimeError(f"Pipeline BeamApp-1 failed in state FAILED: {fault}"))
    assert told.startswith(f"Pipeline BeamApp-1 failed in state FAILED: {fault}; an engine holds")
    assert told.endswith("or make shards smaller (docs/flink.md)")


class Job:
    """What an engine gives for a submitted job."""

    def __init__(self):
        self.calls = []

    def cancel(self):
        self.calls.append("cancel")
        raise RuntimeError("the job server is gone")


@pytest.mark.parametrize(("error", "calls"), [(KeyboardInterrupt, ["cancel"]), (ValueError, [])])
def test_an_engine_does_not_go_on_behind_ctrl_c(error, calls):
    job = Job()
    with pytest.raises(error), _cancelled_with_us(job):
        raise error
    assert job.calls == calls


def test_the_environment_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_beam(lambda p: p | beam.Create([1]), ENGINE, tmp_path / "log")
    assert os.environ["RAYON_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in os.environ


STUCK = """
import signal, sys, threading, time
from pathlib import Path
from pipeline import runner

def die():
    raise RuntimeError("Worker subprocess exited with return code -9")

runner.GRACE_SECONDS = 0.2
signal.signal(signal.SIGINT, signal.SIG_IGN)  # a main thread that no interrupt reaches
with runner._Watch(Path(sys.argv[1])):
    threading.Thread(target=die).start()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_runner_that_waits_for_ever_behind_a_dead_worker_is_ended(tmp_path):
    log = tmp_path / "error.log"
    command = [sys.executable, "-c", STUCK, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a worker process died, perhaps for lack of memory;")
    assert done.stderr.endswith(f"(traceback: {log})\n")
    assert "Worker subprocess exited with return code -9" in log.read_text()


def test_an_error_of_a_file_names_the_machine(tmp_path):
    path = tmp_path / "nothere/a.json"
    with pytest.raises(FileNotFoundError) as raised:
        write_atomic(path, b"x")
    told = f"[Errno 2] No such file or directory (machine {socket.gethostname()}): '{path}'"
    assert str(raised.value) == told


def other_versions(pipeline):
    wanted = {**versions(["numpy"]), "apache-beam": "2.1.0", "numpy": "0"}
    _ = pipeline | beam.Create([1]) | beam.Map(_compare, wanted)


def test_a_worker_of_other_versions_is_refused(tmp_path):
    found = versions(["numpy"])
    told = (
        f"a worker on {socket.gethostname()} has apache-beam {found['apache-beam']} instead of "
        f"2.1.0, numpy {found['numpy']} instead of 0: workers need the versions"
    )
    with pytest.raises(RefusedError, match=re.escape(told)):
        run_beam(other_versions, ENGINE, tmp_path / "log")
    same = {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")}
    check_workers(partial(run_beam, engine=ENGINE, error_log=tmp_path / "log"), same)


def test_workers_that_run_nothing():
    def run(construct):
        raise StageError("TypeError: code() takes at most 16 arguments")

    with pytest.raises(StageError, match=r"code\(\) takes at most .*; have they this .* Python 3"):
        check_workers(run, {})

    def run_without_jar(construct):
        raise StageError(one_line(RuntimeError("Unable to fetch remote job server jar at URL: no")))

    with pytest.raises(StageError, match=r"^Unable .*; Beam downloads it: .*_jar=PATH"):
        check_workers(run_without_jar, {})
    flags = ("--environment_type=EXTERNAL", "--environment_config=10.0.0.7:50000")
    told = r"does a worker pool answer at 10\.0\.0\.7:50000 on each machine .*, and have they this"
    with pytest.raises(StageError, match=told):
        check_workers(run, {}, flags)


@pytest.mark.parametrize(
    ("flags", "elsewhere"),
    [
        ((), False),
        (("--runner=FlinkRunner",), False),
        (("--runner=FlinkRunner", "--environment_type=loopback"), False),
        (("--runner=FlinkRunner", "--environment_type=EXTERNAL"), True),
        (("--runner=PortableRunner", "--environment_type=DOCKER"), True),
        (("--runner=DataflowRunner", "--environment_type=DOCKER"), False),
    ],
)
def test_workers_elsewhere(flags, elsewhere):
    assert are_elsewhere(flags) is elsewhere
