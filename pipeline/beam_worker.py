"""The process that Beam's worker processes of this machine are forked from: it has all imported.

Workers are quiet, and gone when the build is gone: a killed build must not leave any behind that
write while the next build reads. `pipeline/fork_server.py` starts this one; standard input is a
pipe that ends when the driver does.
"""

import gc
import importlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

NEEDED = ("apache_beam.runners.worker.sdk_worker_main", "pipeline.build")
STDIN = 0


def main() -> None:
    # Beam logs 20 lines at INFO for each worker, and the tracebacks that reach the driver anyway
    logging.disable(logging.ERROR)
    for name in NEEDED:
        importlib.import_module(name)
    gc.freeze()  # no worker's collector writes to what they share
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on it ends with standard input
    listener = socket.socket(fileno=int(sys.argv.pop()))
    while STDIN not in select.select([STDIN, listener.fileno()], [], [])[0]:
        caller, _ = listener.accept()
        if os.fork() == 0:
            _work(caller)
        caller.close()
    with suppress(ChildProcessError):  # their CPU seconds are those of the build
        while os.wait():
            pass
    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)


def _work(caller: socket.socket) -> None:
    """A worker, from here to the end of its process."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(json.loads(caller.makefile().readline()))
        threading.Thread(target=_exit_with, args=(caller,), daemon=True).start()
        # Beam prints each failure's traceback; the driver gets it too, and keeps it in error.log
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end of the process
        importlib.import_module(NEEDED[0]).main([])
        caller.send(b"done")
    finally:
        # Beam closes workers one after the other: 0.4 s each for Python to take itself apart
        os._exit(0)


def _exit_with(caller: socket.socket) -> None:
    """Without driver or caller, who has no more to say, there is something to read."""
    select.select([STDIN, caller.fileno()], [], [])
    os._exit(0)


if __name__ == "__main__":
    main()
