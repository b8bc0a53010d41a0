"""The corpus: its files, found by globs, folders and URLs, and their division into portions.

A portion is what one Beam worker reads at a time: a byte range, a run of row groups, or a whole file where the
format cannot be cut. Portions are planned from the listing alone, so the plan is the same on any machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus."""

    url: str
    """Where fsspec opens it."""
    source: str
    """Its name in rejects and reports: relative to the corpus root."""
    bytes: int
    """Size as stored."""
    version: str
    """Changes when the file does: modification time or etag."""


@dataclass(frozen=True, slots=True)
class Portion:
    """One piece of reading: a file, or the part of it from `start` to `stop`."""

    index: int
    """Position in the plan."""
    file: CorpusFile
    start: int
    """First byte, or first row group."""
    stop: int
    """Behind the last byte, or row group."""
    bytes: int
    """Bytes to read, for progress."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What every corpus format is told; each format's `Config` extends it."""

    path: tuple[str, ...]
    """Files, folders, globs or fsspec URLs of the corpus."""
    portion_mib: int = 64
    """Size of the pieces that large uncompressed files are cut into, MiB."""
    max_record_mib: int = 32
    """A larger record is a reject, MiB."""
