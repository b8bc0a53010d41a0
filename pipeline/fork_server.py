"""The driver's end of `pipeline/beam_worker.py`, the process that workers are forked from.

It is started when a build begins, and imports beside the driver. When each worker was a Python of
its own, started when the driver was ready, two cores did nothing else than import for 2 s, and once
more in each pass over the corpus.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline import call_worker

THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "POLARS_MAX_THREADS")
LONGEST_TEMPORARY = 80
"""Characters of the folder for temporary files: the path of a socket has 107 at most."""


class ForkServer:
    """Begins to import at once; its workers and it end with this process, or when it is closed."""

    def __init__(self) -> None:
        short = len(tempfile.gettempdir()) <= LONGEST_TEMPORARY
        folder = tempfile.mkdtemp(prefix="millrace-", dir=None if short else "/tmp")  # noqa: S108
        self.path = Path(folder) / "workers"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(128)
            words = [sys.executable, "-m", "pipeline.beam_worker", str(listener.fileno())]
            self.process = subprocess.Popen(  # noqa: S602 - words are quoted
                _uninterrupted(words),
                shell=True,
                stdin=subprocess.PIPE,  # ends with us, however we end
                pass_fds=[listener.fileno()],
                env=_one_thread_each(),
            )

    def command(self) -> str:
        """By which Beam starts a worker."""
        return _uninterrupted([sys.executable, "-I", "-S", call_worker.__file__, str(self.path)])

    def close(self) -> None:
        """End it, perhaps in the middle of an import that nobody waits for."""
        self.process.terminate()  # it does not listen any more when it has imported
        self.process.communicate()
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _uninterrupted(words: Sequence[str]) -> str:
    """Ctrl-C reaches every process of a terminal; the driver ends these."""
    return f"trap '' INT; exec {shlex.join(words)}"


def _one_thread_each() -> dict[str, str]:
    """Each worker has one core, so the libraries' own threads would fight."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    ours = {"PYTHONPATH": os.pathsep.join(dict.fromkeys([root, *paths]))}
    return {**os.environ, **ours, **dict.fromkeys(THREAD_VARIABLES, "1")}
