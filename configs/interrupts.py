"""Ctrl-C while a program is still importing, which takes seconds: one line and exit code 130.

An entry module expects it in front of its other imports, and hands over when they are done.
"""

import os
import signal
from types import FrameType


def expect() -> None:
    """From now on Ctrl-C ends the process at once, unless the process was told to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def hand_over() -> None:
    """From now on Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing is to be cleaned up yet, and what is being imported might swallow an exception."""
    os.write(2, b"interrupted\n")
    os._exit(130)
