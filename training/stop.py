"""Stopping before the last step: a signal of the scheduler, or a deadline.

A rank that is told to stop only wishes it; wishes ride along with the loss of the next step, so
that all ranks stop behind the same one, with a checkpoint. A signal writes its number into a socket
at once: a thread reads it, even while the main one waits in a collective.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from training import distributed
from training.checkpoint import RunState
from training.console import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_SECONDS = 3.0
"""Launchers pass on what their ranks have got as well: so soon it is no second signal."""


class Stop:
    """What this rank knows of a wish to stop."""

    def __init__(self, max_hours: float) -> None:
        """Wish it after `max_hours` since the run was started, 0 being never, or when told."""
        self.max_hours = max_hours
        self._started = distributed.started()
        self._reason = distributed.stop_before_start()
        self._told = 0.0
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)  # noqa: FBT003

    @property
    def reason(self) -> str:
        """Why the run should stop, empty if it should not."""
        hours = (time.time() - self._started) / 3600
        if not self._reason and self.max_hours and hours >= self.max_hours:
            self._reason = f"max_hours={self.max_hours:g}"
        return self._reason

    @property
    def was_told(self) -> bool:
        """Whether a signal has come; it may also be that the launcher ends what is left."""
        return self._told > 0

    def is_wished(self) -> bool:
        """Whether this rank wishes that the run stops."""
        return bool(self.reason)

    def tell(self, state: RunState, *, num_steps: int) -> None:
        """Print why the run has ended before its last step, if it did; every rank calls it."""
        if state.step < num_steps:
            reason = next(filter(None, distributed.gather(self.reason)))
            say(f"stopped by {reason} behind step {state.step}; the same command goes on")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first signal is a wish and a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals come to the main thread alone")
        before = {number: signal.signal(number, _go_on) for number in SIGNALS}
        descriptor = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, name="millrace-signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in before.items():  # what comes behind a stop is late
                signal.signal(number, signal.SIG_IGN if self.was_told else handler)
            self._theirs.close()  # ends the thread
            thread.join()
            self._ours.close()

    def _listen(self) -> None:
        while numbers := self._ours.recv(64):
            for number in numbers:
                if number in SIGNALS:
                    self._receive(signal.Signals(number))

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._told:
            self._told = now
            self._reason = self._reason or number.name
            _write(
                f"{number.name}: the run stops behind its next step; another one ends it at once"
            )
        elif now - self._told > SAME_SECONDS:
            _write(f"a second {number.name}: ends at once")
            os._exit(128 + number)


def _go_on(*_: object) -> None:
    """Python's part of the handler; the thread has heard of it already."""


def _write(line: str) -> None:
    sys.stderr.write(f"rank {distributed.rank()}: {line}\n")
    sys.stderr.flush()
