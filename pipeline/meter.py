"""How far the reading of a portion has come, in bytes as stored: what its progress is counted in.

Text that is packed, or wrapped in JSON, has other sizes than its file; the plan of the corpus knows
the file's alone.
"""


class Meter:
    """Stored bytes of one portion; whatever was added, what is taken sums up to its size."""

    def __init__(self, portion_bytes: int) -> None:
        self._left = portion_bytes
        self._read = 0

    def add(self, size: float) -> None:
        """So many bytes were read, perhaps ahead, or behind the portion's end."""
        self._read += int(size)

    def take(self, *, last: bool = False) -> int:
        """Bytes since the last call, never more than are left; at the end those that are left."""
        taken = self._left if last else min(self._read, self._left)
        self._left -= taken
        self._read = 0
        return taken
