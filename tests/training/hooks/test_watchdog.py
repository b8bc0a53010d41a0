"""The watchdog: what befalls one of two ranks ends both, told first, and nothing else does."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.hooks.watchdog import Config, find_slowest, place_of

WORKER = Path(__file__).parent.parent / "watchdog_worker.py"


class Ranks:
    """Two ranks that write to one log, as under a launcher."""

    def __init__(self, folder, environment, what):
        self.log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with self.log.open("w") as log:
            self.processes = [
                subprocess.Popen(
                    [sys.executable, "-u", WORKER, what],
                    env=environment
                    | {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": "2",
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                for rank in range(2)
            ]

    def wait_for(self, text):
        until = time.monotonic() + 60
        while text not in self.log.read_text():
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def end(self, *, without=None):
        """Exit codes, and what both have printed."""
        codes = [p.wait(timeout=60) for n, p in enumerate(self.processes) if n != without]
        return codes, self.log.read_text()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def ranks(tmp_path, environment):
    started = []

    def start(what):
        started.append(Ranks(tmp_path, environment, what))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.mark.slow
def test_the_error_of_a_rank_comes_first(ranks):
    codes, log = ranks("error").end()
    assert codes == [1, 1]
    ours = log.index("KeyError: 'no such thing")
    others = log.index("rank 0: ends, since rank 1 failed: KeyError: 'no such thing")
    assert ours < others
    assert log.count("Traceback") == 1


@pytest.mark.slow
def test_a_rank_that_ends_for_another_has_its_exit_code(ranks):
    """The worker has no verb around it: an error of rank 1 itself is Python's code 1."""
    codes, log = ranks("mistake").end()
    assert codes == [2, 1]
    assert "rank 0: ends, since rank 1 failed: ValueError: a is 3; it must be 4" in log


@pytest.mark.slow
def test_a_rank_that_is_gone_is_named(ranks):
    """Though its connections stay open, so that the other one waits in a collective."""
    (code,), log = ranks("freeze").end(without=1)
    assert code == 1
    assert "rank 0: ends, since rank 1 is gone: it was killed, or its machine was\n" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_hang_shows_all_stacks_and_names_the_slowest(ranks):
    codes, log = ranks("hang").end()
    assert codes == [1, 1]
    for rank, place in enumerate(("sum_over_ranks", "befall")):
        assert re.search(rf"rank {rank}: hangs behind step 2; its stacks:\n(.*\n)+.*{place}\n", log)
    (verdict,) = re.findall("error: no step in 1.5 s: .*", log)
    assert "rank 1 is the slowest: rank 1: behind step 2, " in verdict
    assert re.search(
        r"; rank 0: behind step 2, training/distributed.py:\d+ sum_over_ranks", verdict
    )


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_a_slow_hook_is_no_hang(ranks):
    codes, log = ranks("signal").end()
    assert codes == [0, 0], log
    assert log.count("rank 1: SIGTERM: the run stops behind its next step") == 1
    for rank in range(2):
        assert f"rank {rank} ends behind step 3" in log


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_that_waits_for_another(ranks):
    """In a collective, where Python runs no handler."""
    both = ranks("wait")
    both.wait_for("rank 0 is in step 3")
    both.processes[0].send_signal(signal.SIGUSR1)
    both.wait_for("rank 0: SIGUSR1: the run stops behind its next step; another one ends it")
    time.sleep(0.2)
    both.processes[0].send_signal(signal.SIGUSR1)
    codes, log = both.end()
    assert codes == [128 + signal.SIGUSR1, 1]
    assert "rank 0: a second SIGUSR1: ends at once\n" in log
    assert "rank 1: ends, since " in log


def row(step, *, waits, began=-1.0, place="training/engine.py:1 train_step"):
    return {"step": step, "waits": waits, "began": began, "place": place}


@pytest.mark.parametrize(
    ("rows", "slowest"),
    [
        ([row(7, waits=True), row(6, waits=True), row(7, waits=False)], 1),
        ([row(7, waits=True), row(7, waits=True), row(7, waits=False)], 2),
        ([row(7, waits=True, began=-5), row(7, waits=True, began=-4)], 1),
    ],
)
def test_the_slowest(rows, slowest):
    told = find_slowest(dict(enumerate(rows)), len(rows))
    assert told.startswith(f"rank {slowest} is the slowest: rank {slowest}: behind step ")
    assert told.count("behind step") == len(rows)


def test_a_rank_that_does_not_answer():
    told = find_slowest({0: row(3, waits=True)}, 3)
    assert told.startswith("rank 1, rank 2 does not answer; rank 0: behind step 3, training/")


def test_places():
    assert place_of(sys._getframe()) == ("outside of training/", False)
    assert place_of(None) == ("outside of training/", False)


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_seconds_without_meaning(seconds):
    with pytest.raises(ValueError, match="step_seconds must be 0 or more and finite"):
        Config(step_seconds=seconds)
