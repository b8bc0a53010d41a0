"""A worker process of the local runner: Beam's own, but quiet, and gone when the build is gone.

A killed build must not leave workers behind that write while the next build reads.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

POLL_SECONDS = 0.5


def main() -> None:
    # Beam logs 20 lines at INFO for each worker, and the tracebacks that reach the driver anyway
    logging.disable(logging.ERROR)
    watcher = threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True)
    watcher.start()
    # imported late: takes seconds, during which the parent may die already
    from apache_beam.runners.worker import sdk_worker_main

    # Beam prints each failure's traceback; the driver gets it too, and keeps it in error.log
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end of the process
    sdk_worker_main.main([])
    # Beam closes workers one after the other: 0.4 s each for Python to take itself apart
    os._exit(0)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
