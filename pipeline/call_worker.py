"""The command by which Beam starts a worker: asks `pipeline/beam_worker.py` for one, ends with it.

Of the standard library alone, without site-packages: it is up in 20 ms. Exits with 0 where the
worker says that it is done, else quietly with 1.
"""

import json
import os
import socket
import sys
from contextlib import suppress

OF_BEAM = (
    "CONTROL_API_SERVICE_DESCRIPTOR",
    "LOGGING_API_SERVICE_DESCRIPTOR",
    "PIPELINE_OPTIONS",
    "WORKER_ID",
)
"""Variables by which Beam tells a worker what it is."""


def main(path: str) -> int:
    variables = {name: os.environ[name] for name in OF_BEAM}
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(path)
        connection.sendall(json.dumps(variables).encode() + b"\n")
        return 0 if connection.recv(4) == b"done" else 1
    return 1  # killed before it had read, or the build is over; the driver tells why


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
