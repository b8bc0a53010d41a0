"""What was asked of a store and of a cache: counted by threads, told by the run."""

from dataclasses import dataclass, field
from threading import Lock


@dataclass(slots=True)
class Traffic:
    """Counts since a split was opened, of this rank."""

    num_chunks: int = 0
    """Chunks that came from the store."""
    num_bytes: int = 0
    """Bytes of those."""
    num_retries: int = 0
    """Reads that failed, or gave other bytes than the manifest says, and were made again."""
    num_cache_hits: int = 0
    """Chunks that came from the cache of the node."""
    num_cache_faults: int = 0
    """Files of the cache that were damaged, and were fetched again."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def count(self, **amounts: int) -> None:
        """Add to counts, by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)
