"""The other side of `sandbox.py`: takes batches of images and answers image by image.

It lives under limits that the kernel holds, so that no decoder can get around them.
"""

import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pipeline.images.decode import BadImage
from pipeline.images.process import Outcome, Processed

OUT_OF_MEMORY = 77
"""Exit code; the memory of a process that met its limit is in no state to go on with."""
POLL_SECONDS = 0.5
DONE = b"."
"""What the child says when it is ready, and at the end of each batch."""
_LENGTH = struct.Struct("<Q")


def main(descriptor: int, images: int, answers: int) -> None:
    """Read batches from one file, write their outcomes to another, and say when they are done."""
    connection = socket.socket(fileno=descriptor)
    messages = connection.makefile("rb")
    parent, function, limits = pickle.loads(receive(messages))  # our parent is no stranger
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the build, which ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    connection.sendall(DONE)
    while True:
        try:
            sizes = pickle.loads(receive(messages))
        except EOFError:
            return
        _limit_memory(limits.memory_mib << 20)
        start = place = 0
        for size in sizes:
            image = os.pread(images, size, start)
            start += size
            for part in framed(_answer(image, function, limits.cpu_seconds)):
                place += os.pwrite(answers, part, place)
        _limit_memory(None)
        connection.sendall(DONE)


def _answer(image: bytes, function: Callable[[bytes], Outcome], cpu_seconds: float) -> bytes:
    """The packed outcome; beyond the limit of CPU time SIGPROF ends this process."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return pack_outcome(function(image))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception as error:  # noqa: BLE001 - no image may end a build
        found = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return pack_outcome(("decode", BadImage("decoder_crashed", found)))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def framed(message: bytes) -> tuple[bytes, bytes]:
    """A message behind its length."""
    return _LENGTH.pack(len(message)), message


def complete(messages: bytes) -> Iterator[bytes]:
    """Framed messages one behind the other, up to one that a death has cut off."""
    start = 0
    while len(messages) >= start + _LENGTH.size:
        (size,) = _LENGTH.unpack_from(messages, start)
        start += _LENGTH.size + size
        if start > len(messages):
            return
        yield messages[start - size : start]


def send(connection: socket.socket, message: bytes) -> None:
    """Send a framed message."""
    connection.sendall(b"".join(framed(message)))


def receive(messages: BinaryIO) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    head = messages.read(_LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    message = messages.read(size)
    if len(head) < _LENGTH.size or len(message) < size:
        raise EOFError
    return message


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome as one message that is safe to read, whatever a decoder did to this process."""
    if isinstance(outcome, Processed):
        head = [outcome.width, outcome.height, len(outcome.appearance)]
        return json.dumps(head).encode() + b"\n" + outcome.appearance + outcome.encoded
    stage, bad = outcome
    return json.dumps({"stage": stage, "bad": asdict(bad)}).encode()


def unpack_outcome(message: bytes) -> Outcome:
    """The outcome of a message."""
    head, _, content = message.partition(b"\n")
    tree = json.loads(head)
    if isinstance(tree, dict):
        return tree["stage"], BadImage(**tree["bad"])
    width, height, seen = tree
    return Processed(content[seen:], width, height, content[:seen])


def _limit_memory(more_bytes: int | None) -> None:
    """Allow so much above what is taken now; None for no limit."""
    statm = Path("/proc/self/statm")
    limit = resource.RLIM_INFINITY
    if more_bytes is not None and statm.exists():  # Linux
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
