"""The process that workers are forked from."""

import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest

from pipeline import call_worker
from pipeline.fork_server import THREAD_VARIABLES, ForkServer
from pipeline.runner import Engine, fork_server_of, run_beam
from pipeline.spread import Spread


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def note(pipeline, folder):
    """Each worker writes of which process it is and what it may use; they wait for each other."""
    _ = (
        pipeline
        | "Number" >> beam.Create([(0, "0"), (1, "1")])
        | "SpreadNumbers" >> Spread()
        | "Note" >> beam.Map(_note, folder)
    )


def _note(number, folder):
    threads = [os.environ[name] for name in THREAD_VARIABLES]
    (folder / number).write_text(f"{os.getpid()} {os.getppid()} {' '.join(threads)}")


@pytest.mark.slow
def test_workers_are_forked_from_one_process_in_each_pass(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    pids = set()
    with fork_server_of(2, ()) as fork_server:
        for _ in range(2):
            engine = Engine(2, (), spills=True, fork_server=fork_server)
            run_beam(partial(note, folder=folder), engine, tmp_path / "log")
            for path in folder.iterdir():
                pid, parent, *threads = path.read_text().split()
                assert int(parent) == fork_server.process.pid
                assert threads == ["1", "1", "1"]
                pids.add(pid)
    assert len(pids) == 4
    assert fork_server.process.returncode == 0
    assert not fork_server.path.parent.exists()


@pytest.mark.parametrize(("workers", "flags"), [(1, ()), (4, ("--runner=FlinkRunner",))])
def test_only_workers_of_this_machine_need_it(workers, flags):
    with fork_server_of(workers, flags) as fork_server:
        assert fork_server is None


def test_it_can_be_closed_before_it_has_imported(temporary):
    fork_server = ForkServer()
    started = time.monotonic()
    fork_server.close()
    assert time.monotonic() - started < 1  # an import takes 2 s
    fork_server.close()  # again, as behind a build of one worker
    assert fork_server.process.returncode is not None
    assert list(temporary.iterdir()) == []


def test_it_ends_with_its_driver(temporary):
    fork_server = ForkServer()
    fork_server.process.stdin.close()  # as the end of a process does
    assert fork_server.process.wait(120) == 0
    assert list(temporary.iterdir()) == []


def test_a_caller_hears_of_the_end_of_a_worker(temporary):
    """This one is told of no driver, and fails."""
    fork_server = ForkServer()
    assert call(fork_server.command()).wait(30) == 1
    fork_server.close()
    refused = call(fork_server.command())
    assert refused.communicate(timeout=30) == ("", "")
    assert refused.returncode == 1


def test_a_caller_of_a_worker_that_is_killed_before_it_has_read_says_nothing(temporary):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(temporary / "workers"))
        listener.listen()
        caller = call(shlex.join([sys.executable, call_worker.__file__, listener.getsockname()]))
        worker, _ = listener.accept()
        select.select([worker], [], [])  # what it does not read is lost with it
        worker.close()
        assert caller.communicate(timeout=30) == ("", "")
    assert caller.returncode == 1


def call(command):
    """As Beam does."""
    told = dict.fromkeys(call_worker.OF_BEAM, "?") | {"PIPELINE_OPTIONS": "{}"}
    return subprocess.Popen(
        command,
        shell=True,
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_long_name_of_the_folder_for_temporary_files(monkeypatch, tmp_path):
    longest = tmp_path / ("long" * 25)
    longest.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(longest))
    fork_server = ForkServer()
    assert fork_server.path.parent.parent == Path("/tmp")
    fork_server.close()
    assert not fork_server.path.parent.exists()
