"""Lines on stdout: by rank 0, and also where the disk below is full."""

import io
import os
import subprocess
import sys

import pytest

from training.console import say

SCRIPT = """
import resource
from training.console import say
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
say("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
say("second")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
say("third")
"""


def test_rank_zero_alone_prints(monkeypatch, capsys):
    say("one")
    monkeypatch.setenv("RANK", "1")
    say("two")
    assert capsys.readouterr().out == "one\n"


def test_a_full_disk_below_stdout_ends_no_run(environment, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, stdout=file, stderr=subprocess.PIPE
        )
    assert process.returncode == 0, process.stderr
    assert log.read_text().startswith("first\n")
    assert log.read_text().endswith("third\n")


def test_a_reader_that_is_gone_is_an_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    pipe = os.fdopen(writing, "wb", buffering=0)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=True))
    with pytest.raises(BrokenPipeError):
        say("x")
