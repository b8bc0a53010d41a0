"""Files that are complete or absent, also after a power cut."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file under a temporary name, fsync it, and give it its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Let a file, or the names in a folder, outlive the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
