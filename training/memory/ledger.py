"""Counts bytes that are alive: a buffer is booked when it is made and struck off when forgotten.

It relies on CPython's reference counting, as the lifetime of PyTorch's tensors does: code that
holds buffers as a model holds tensors has the model's peak.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Peak:
    """The highest point of a phase."""

    num_bytes: int = 0
    breakdown: Counter[str] = field(default_factory=Counter)
    """Bytes alive then, by kind."""
    moment: str = ""
    """What went on then."""


class Ledger:
    """Bytes alive by kind, and what they were at the highest point of each phase."""

    def __init__(self) -> None:
        self.alive: Counter[str] = Counter()
        self.total = 0
        self.peaks: dict[str, Peak] = {}
        self.moment = ""
        self.current = Peak()
        self.go_to("start", "start")

    @property
    def peak(self) -> Peak:
        """The highest point of all."""
        return max(self.peaks.values(), key=lambda peak: peak.num_bytes)

    def go_to(self, phase: str, moment: str) -> None:
        """What is booked from now on belongs to a phase, and to a moment in it."""
        self.current = self.peaks.setdefault(phase, Peak())
        self.moment = moment
        self.look()

    def look(self) -> None:
        """Whether this is the highest point of the phase so far."""
        if self.total > self.current.num_bytes:
            self.current.num_bytes = self.total
            self.current.breakdown = self.alive.copy()
            self.current.moment = self.moment

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
        ledger.look()

    def __del__(self) -> None:
        self.ledger.alive[self.kind] -= self.num_bytes
        self.ledger.total -= self.num_bytes
