"""A worker process of the local runner: Beam's own, but quiet, and gone when the build is gone.

A killed build must not leave workers behind that write while the next build reads.
"""

import logging
import os
import threading
import time

POLL_SECONDS = 0.5


def main() -> None:
    logging.disable(logging.WARNING)  # Beam logs some 20 lines at INFO for each worker
    watcher = threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True)
    watcher.start()
    # imported late: takes seconds, during which the parent may die already
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main([])


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
