"""Reads that fail are made again, with growing pauses, until a limit.

A store that refuses, or has no such object, says so at once: no patience mends that.
"""

import logging
import random
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

from configs.redact import redact
from pipeline.urls import asking, is_final
from training.data.traffic import Traffic

FIRST_PAUSE_SECONDS = 0.5
"""Doubled behind each failure; half of a pause is left to chance, so that ranks do not march in
step."""
LONGEST_PAUSE_SECONDS = 20.0
QUIET_SECONDS = 60.0
"""Failures that are closer together are one incident, told in one line."""

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class Patience:
    """Makes reads until they succeed, each for `limit_seconds` at most."""

    def __init__(self, limit_seconds: float, traffic: Traffic | None = None) -> None:
        self.limit_seconds = limit_seconds
        self._traffic = traffic or Traffic()
        self._closed = Event()
        self._lock = Lock()
        self._last_failure = -QUIET_SECONDS
        self._is_down = False

    def read(self, attempt: Callable[[], Answer], *, what: str) -> Answer:
        """The result of `attempt`, made again while it fails.

        Raises:
            FileNotFoundError, ValueError, StoreError: no later attempt would do better.
            OSError: it failed for too long.
        """
        started, number = 0.0, 0
        while True:
            try:
                answer = attempt()
            except Exception as error:  # noqa: BLE001 - every store has classes of its own
                if is_final(error):
                    with asking(what):
                        raise
                number += 1
                started = started or time.monotonic()
                self._wait(error, number, started, what)
            else:
                if number:
                    self._tell_recovered(what, time.monotonic() - started)
                return answer

    def close(self) -> None:
        """End the pauses: reads that are to be made again fail instead."""
        self._closed.set()

    def _wait(self, error: Exception, number: int, started: float, what: str) -> None:
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(number - 1, 9))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        spent = time.monotonic() - started
        if spent + pause > self.limit_seconds:
            times = "once" if number == 1 else f"in {number} attempts over {spent:.0f} s"
            raise OSError(f"{what}: not readable {times}: {in_words(error)}") from None
        self._traffic.count(num_retries=1)
        self._tell_failed(what, error)
        if self._closed.wait(pause):
            raise OSError(f"{what}: not readable when the run ended: {in_words(error)}") from None

    def _tell_failed(self, what: str, error: Exception) -> None:
        """A line where an incident begins; what follows is counted."""
        with self._lock:
            is_new = time.monotonic() - self._last_failure > QUIET_SECONDS
            self._last_failure = time.monotonic()
            self._is_down = self._is_down or is_new
        if is_new:
            logger.warning(
                "warning: %s: %s; asked again, for %.0f s at most",
                redact(what),
                in_words(error),
                self.limit_seconds,
            )

    def _tell_recovered(self, what: str, seconds: float) -> None:
        with self._lock:
            is_told, self._is_down = self._is_down, False
        if is_told:
            logger.warning("%s: read %.1f s later", redact(what), seconds)


def in_words(error: Exception) -> str:
    """What an error says, in one line without credentials."""
    words = redact(" ".join(str(error).split()))
    name = type(error).__name__
    return f"{name}: {words}" if words else name
