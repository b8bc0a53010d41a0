"""A watchdog beside training: a rank that hangs or has died ends the whole run, and is named.

A thread of each rank gives a sign of life every second, whatever the main thread waits for, and
looks for those of the next rank. Where a step takes too long on any rank, all print their stacks.
"""

import atexit
import faulthandler
import json
import math
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from configs.command import AGAIN, exit_code
from training import distributed
from training.peers import Peers, is_of_a_collective
from training.stop import Stop
from training.trainer import Hook, StepInfo

BEAT_SECONDS = 1.0
SILENT_SECONDS = 45.0
"""A rank without a sign of life for so long is gone."""
IMPATIENT_SECONDS = 10.0
"""The same behind a signal, with which launchers end the rest, or behind a failed collective."""
GRACE_SECONDS = 15.0
"""A rank that fails has so long to print its error before the others end."""
GONE = "is gone: it was killed, or its machine was"
ROOT = Path(__file__).parent.parent.parent
WITH_OTHERS = ("training/engine.py", "training/gradient_gate.py", "training/distributed.py")
"""Where a rank computes or waits with all others; elsewhere it lets them wait."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `watchdog`."""

    step_seconds: float = 1800.0
    """A step, the wait for its batch included, that takes longer hangs: all ranks print their
    stacks, and the run ends with the slowest one named; 0 never. The first step of a process, which
    compiles, and evaluations, checkpoints and other hooks do not count.
    """

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.step_seconds < math.inf:
            found = self.step_seconds
            raise ValueError(f"step_seconds must be 0 or more and finite, found {found}")


class Watchdog(Hook):
    """A hook, so that it knows of steps; the first one, so that others do not count."""

    pauses_training = False

    def __init__(self, config: Config, stop: Stop) -> None:
        self.step_seconds = config.step_seconds or math.inf
        self.stop = stop
        self.cause = ""
        """Why the run ends, if another rank is the reason."""
        self._code = AGAIN
        """That of the rank which is the reason: a launcher may see ours first."""
        self._own_failure = f"rank {distributed.rank()} failed:"
        self._ending = threading.Lock()
        self._step, self._is_first, self._began = 0, True, math.inf
        self._asked = False
        self._closed = threading.Event()
        self._caused = threading.Event()
        self._cause_since = math.inf
        self._beats: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> "Watchdog":
        topic = Peers.new_topic()
        self._peers, self._main_peers = Peers(topic), Peers(topic)
        self._thread = threading.Thread(target=self._watch, name="millrace-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Behind an error of this rank, tell the others; behind one of a collective, wait for
        their word and end with it. The thread watches on: what is left must not hang either.
        """
        if error is None:
            error = _leave_together()
        if error is None or distributed.world_size() == 1:
            self._close()
            return
        atexit.register(self._close)  # a thread inside of a call would abort the interpreter's end
        first_line = (str(error).splitlines() or [""])[0]
        if is_of_a_collective(error):
            self._asked = True
            self._caused.wait(IMPATIENT_SECONDS + 5)
            self._end(self.cause or f"a collective failed: {first_line}")
        elif isinstance(error, Exception):
            self._fail(f"{self._own_failure} {type(error).__name__}: {first_line}", error)

    def before_step(self) -> None:
        """From here on it may hang."""
        if not self._is_first:
            self._began = time.monotonic()

    def on_step(self, info: StepInfo) -> None:
        """It did not."""
        self._step, self._is_first, self._began = info.state.step, False, math.inf

    def _close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _fail(self, text: str, error: Exception) -> None:
        try:
            self._main_peers.tell("code", str(exit_code(error)))
            self._main_peers.tell("failed", text)
        except RuntimeError:
            return  # nobody is left to hear it

    def _watch(self) -> None:
        rank = distributed.rank()
        count = 0
        while not self._closed.wait(BEAT_SECONDS):
            count += 1
            try:
                self._peers.update(f"beat {rank}", str(count))
                self._look_for_hangs()
                cause = self._peers.told("failed") or self._find_silent()
                if cause:
                    self._code = int(self._peers.told("code") or AGAIN)
            except RuntimeError:
                cause = f"{distributed.store_holder()} {GONE}"
            if cause and not self._closed.is_set():
                self._prepare_end(cause)

    def _prepare_end(self, cause: str) -> None:
        """End soon, if this rank does not by itself."""
        now = time.monotonic()
        self.cause, self._cause_since = cause, min(self._cause_since, now)
        self._caused.set()
        is_at_once = cause.endswith(GONE) or self.stop.was_told
        waits = 0 if is_at_once and not cause.startswith(self._own_failure) else GRACE_SECONDS
        if now - self._cause_since >= waits:
            self._end(cause)

    def _find_silent(self) -> str:
        """Whether a rank has ended without a word: usually of the next one, impatiently of any."""
        own, world_size, now = distributed.rank(), distributed.world_size(), time.monotonic()
        impatient = self._asked or self.stop.was_told
        limit = IMPATIENT_SECONDS if impatient else SILENT_SECONDS
        for distance in range(1, world_size if impatient else min(2, world_size)):
            other = (own + distance) % world_size
            beat = self._peers.told(f"beat {other}")
            if beat != self._beats.get(other, ("none", 0.0))[0]:
                self._beats[other] = (beat, now)
            elif now - self._beats[other][1] > limit:
                self._peers.tell("failed", f"rank {other} {GONE}")
        return self._peers.told("failed")

    def _look_for_hangs(self) -> None:
        if time.monotonic() - self._began > self.step_seconds:
            self._peers.tell("hang", str(distributed.rank()))
        if self._peers.told("hang"):
            self._end_of_hang()

    def _end_of_hang(self) -> NoReturn:
        """Print the stacks of this rank, and one of all ranks prints who is behind."""
        rank, world_size = distributed.rank(), distributed.world_size()
        _write(f"rank {rank}: hangs behind step {self._step}; its stacks:\n{_stacks()}")
        place, waits = place_of(sys._current_frames().get(threading.main_thread().ident or 0))
        began = min(self._began, time.monotonic()) - time.monotonic()
        row = {"step": self._step, "place": place, "waits": waits, "began": began}
        self._peers.update(f"place {rank}", json.dumps(row))
        until, places = time.monotonic() + 5 * BEAT_SECONDS, dict[int, str]()
        while len(places) < world_size and time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 4)
            places = {
                n: text for n in range(world_size) if (text := self._peers.told(f"place {n}"))
            }
        if rank == min(places):
            rows = {n: json.loads(text) for n, text in places.items()}
            _write(f"error: no step in {self.step_seconds:g} s: {find_slowest(rows, world_size)}\n")
        time.sleep(BEAT_SECONDS)  # the store may be rank 0's
        os._exit(1)

    def _end(self, cause: str) -> NoReturn:
        with self._ending:  # once, of two threads
            _write(f"rank {distributed.rank()}: ends, since {cause}\n")
            os._exit(self._code)


def _leave_together() -> RuntimeError | None:
    """Wait until all ranks are here, since the store goes with the first; what broke, if it did."""
    try:
        distributed.barrier()
    except RuntimeError as error:
        return error
    return None


def find_slowest(rows: dict[int, dict[str, float | str | bool]], world_size: int) -> str:
    """Which rank the others wait for, and where each is."""
    missing = [rank for rank in range(world_size) if rank not in rows]
    told = [f"rank {n}: behind step {row['step']}, {row['place']}" for n, row in rows.items()]
    if missing:
        names = ", ".join(f"rank {rank}" for rank in missing)
        return f"{names} does not answer; {'; '.join(told)}"
    # The one with the fewest steps; of several, one outside of the engine; then the last to begin.
    slowest = min(rows, key=lambda n: (rows[n]["step"], rows[n]["waits"], -float(rows[n]["began"])))
    others = [told[n] for n in rows if n != slowest]
    return f"rank {slowest} is the slowest: {'; '.join([told[slowest], *others])}"


def place_of(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost line of ours that a thread is in, and whether it is there with all ranks."""
    inside_torch = False
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        inside_torch |= "/torch/distributed/" in str(path)
        if path.is_relative_to(ROOT / "training"):
            name = str(path.relative_to(ROOT))
            place = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
            return place, inside_torch or name in WITH_OTHERS
        frame = frame.f_back
    return "outside of training/", inside_torch


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _write(text: str) -> None:
    """At once and whole: several ranks write to one log."""
    sys.stdout.flush()
    os.write(2, text.encode())
