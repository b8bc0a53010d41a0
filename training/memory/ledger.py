"""Counts bytes that are alive: a buffer is booked when it is made and struck off when forgotten.

It relies on CPython's reference counting, as the lifetime of PyTorch's tensors does: code that holds
buffers as a model holds tensors has the model's peak.
"""

from collections import Counter


class Ledger:
    """Bytes alive by kind, and what they were at the highest point."""

    def __init__(self) -> None:
        self.alive: Counter[str] = Counter()
        self.total = 0
        self.moment = ""
        """What is going on, for the record of the peak."""
        self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self.peak_moment = ""

    def book(self, kind: str, num_bytes: float) -> "Buffer":
        """A buffer of a kind; it ends with its last reference."""
        return Buffer(self, kind, int(num_bytes))

    def visit(self, kind: str, num_bytes: float) -> None:
        """A buffer that is gone at once."""
        self.book(kind, num_bytes)


class Buffer:
    """Bytes in a ledger."""

    __slots__ = ("kind", "ledger", "num_bytes")

    def __init__(self, ledger: Ledger, kind: str, num_bytes: int) -> None:
        self.ledger = ledger
        self.kind = kind
        self.num_bytes = num_bytes
        ledger.alive[kind] += num_bytes
        ledger.total += num_bytes
        if ledger.total > ledger.peak:
            ledger.peak = ledger.total
            ledger.at_peak = ledger.alive.copy()
            ledger.peak_moment = ledger.moment

    def __del__(self) -> None:
        self.ledger.alive[self.kind] -= self.num_bytes
        self.ledger.total -= self.num_bytes
