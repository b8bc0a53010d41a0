"""Threads that read ahead.

Daemons, unlike those of `concurrent.futures`: a process that ends does not wait for a store.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

CLOSED = "the dataset was closed while it was read"
Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Fetchers:
    """At most `num_threads`, started as they are needed; jobs are taken in their order."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._finalizer = weakref.finalize(self, _end, self._jobs, self._threads)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """What a thread makes of the arguments.

        Raises:
            OSError: they were closed.
        """
        if not self._finalizer.alive:
            raise OSError(CLOSED)
        future: Future[Any] = Future()
        self._jobs.put((future, function, arguments))
        if len(self._threads) < self._num_threads:
            thread = Thread(target=_work, args=(self._jobs,), name="millrace-chunks", daemon=True)
            thread.start()
            self._threads.append(thread)
        return future

    def close(self) -> None:
        """Let threads end behind what they do now; what waits fails."""
        self._finalizer()


def _work(jobs: "SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - who asked must hear of it
            future.set_exception(error)
        del job, future, function, arguments  # a thread that waits keeps no chunk


def _end(jobs: "SimpleQueue[Job | None]", threads: list[Thread]) -> None:
    while not jobs.empty():
        if (job := jobs.get()) is not None:
            job[0].set_exception(OSError(CLOSED))
    for _ in threads:
        jobs.put(None)
