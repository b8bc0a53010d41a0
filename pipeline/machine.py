"""What a worker cannot read or write it tells with its machine and the path: an engine hands on the
text of an error, and not whose it was.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def on_this_machine(path: Path | str) -> Iterator[None]:
    """An OSError inside names this machine and the path, or URL."""
    try:
        yield
    except OSError as error:
        machine = f"(machine {socket.gethostname()})"
        if error.errno is None:
            raise OSError(f"{error} {machine}: '{path}'") from error
        raise OSError(error.errno, f"{error.strerror} {machine}", str(path)) from error


@contextmanager
def writing(path: Path, *temporary: Path) -> Iterator[None]:
    """Around what writes a file under temporary names: none of them stays, where a full disk needs
    the room, and an OSError names this machine and the path.
    """
    with on_this_machine(path):
        try:
            yield
        finally:
            for each in temporary:
                each.unlink(missing_ok=True)
