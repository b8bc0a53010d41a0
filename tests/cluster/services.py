"""Programs of this machine that cluster tests need, start and stop."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def need(*programs):
    """Skip where a program is missing, or this is not root."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to start daemons and make network namespaces")


def wait_until(is_true, *, seconds=120, why=lambda: ""):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemons:
    """Processes that end with the test session, and the tree below them."""

    def __init__(self):
        self.started = []

    def start(self, *words, log, **options):
        with Path(log).open("a") as file:
            process = subprocess.Popen(
                [str(word) for word in words],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        self.started.append(process)
        return process

    def stop(self):
        for process in reversed(self.started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
