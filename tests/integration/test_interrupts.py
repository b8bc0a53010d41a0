"""Ctrl-C while a verb is still importing: one line, exit code 130."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ["training", "configs/training/tiny_shakespeare.yaml", "run_dir=/nowhere/run"]
GENERATE = ["training.generate", "/nowhere"]
PIPELINE = ["pipeline", "configs/pipeline/tiny_shakespeare.yaml", "dataset_dir=/nowhere/dataset"]
PROBE = """
from configs import interrupts
interrupts.expect()
print("expecting", flush=True)
{then}
import time
time.sleep(30)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def start(*words, **settings):
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "library"),
    [
        (TRAINING, "libtorch_cpu"),
        (TRAINING, "numpy"),
        (GENERATE, "libtorch_cpu"),
        (PIPELINE, "numpy"),
        (PIPELINE, "libarrow"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_ctrl_c_during_the_imports(words, library):
    """At the moment when a library has been mapped into memory, and others are still to come."""
    process = start("-m", *words)
    maps = Path(f"/proc/{process.pid}/maps")
    until = time.monotonic() + 30
    while library not in maps.read_text():
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said, out) == (130, "interrupted\n", "")


def interrupted(then, **settings):
    process = start("-c", PROBE.format(then=then), **settings)
    assert process.stdout.readline() == "expecting\n"
    assert not then or process.stdout.readline() == "went on\n"
    process.send_signal(signal.SIGINT)
    return process


def test_the_process_ends_at_once():
    process = interrupted("")
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_afterwards_it_is_an_exception_again():
    process = interrupted("interrupts.hand_over(); print('went on', flush=True)")
    _, said = process.communicate(timeout=10)
    assert said.endswith("KeyboardInterrupt\n")


def test_a_process_that_was_told_to_ignore_it_goes_on():
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    process = interrupted("", preexec_fn=ignore)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()
