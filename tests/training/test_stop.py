"""Wishes to stop: signals, a deadline, and what a launcher hands on; whole ranks are elsewhere."""

import os
import signal
import time

import pytest

from training import distributed
from training.stop import Stop


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (distributed.STARTED, distributed.STOP):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone


def wait_until(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_wish_inside_and_what_it_was_outside(number, capfd):
    before = signal.getsignal(number)
    stop = Stop(0.0)
    with stop.listening():
        assert not stop.is_wished()
        for _ in range(3):  # what comes within seconds is a launcher's copy
            os.kill(os.getpid(), number)
        wait_until(stop.is_wished)
        assert (stop.reason, stop.was_told) == (number.name, True)
    assert signal.getsignal(number) is signal.SIG_IGN  # it is on its way out
    signal.signal(number, before)
    told = capfd.readouterr().err
    assert told.count(f"rank 0: {number.name}: the run stops behind its next step") == 1


def test_without_a_signal_all_is_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    stop = Stop(0.0)
    with stop.listening():
        pass
    assert not stop.is_wished()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_deadline_counts_from_the_start_of_the_launcher(monkeypatch):
    assert not Stop(0.5).is_wished()
    monkeypatch.setenv(distributed.STARTED, str(time.time() - 1801))
    assert Stop(0.5).reason == "max_hours=0.5"
    assert not Stop(0.51).is_wished()
    assert not Stop(0.0).is_wished()


def test_ranks_that_start_after_the_signal_know_of_it(monkeypatch):
    monkeypatch.delenv(distributed.STARTED)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "")
    distributed.hand_to_ranks(stop="SIGUSR1")
    stop = Stop(0.0)
    assert (stop.reason, stop.was_told) == ("SIGUSR1", False)
    assert float(os.environ[distributed.STARTED]) == pytest.approx(time.time(), abs=5)


def test_why_a_run_has_ended_is_told_only_before_its_last_step(state_of, monkeypatch, capsys):
    monkeypatch.setenv(distributed.STOP, "SIGTERM")
    stop = Stop(0.0)
    stop.tell(state_of(8), num_steps=8)
    stop.tell(state_of(7), num_steps=8)
    assert capsys.readouterr().out == (
        "stopped by SIGTERM behind step 7; the same command goes on\n"
    )
