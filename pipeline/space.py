"""Disk space: stated and checked before a build starts, explained when it ran out."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.corpus import Portion
from pipeline.work import FOLDER

_LOG = logging.getLogger(__name__)

COMPRESSION = 4.0
"""What compressed text grows by, at most, about."""
PROBABLE = 0.3
"""Below this share of the estimate a build is warned of: filters may drop much of a corpus, and
markup around the text any share of it, so nothing is certain before it is read."""

_COMPRESSED = (".gz", ".zst", ".parquet", ".pq", ".bz2", ".xz")


def estimate_bytes(portions: Sequence[Portion], *, growth: float) -> int:
    """What a build will hold on its disk, at most, about."""
    stored = sum(
        portion.bytes * (COMPRESSION if portion.file.url.endswith(_COMPRESSED) else 1)
        for portion in portions
    )
    return int(stored * growth)


def check_free_space(dataset_dir: Path, portions: Sequence[Portion], *, growth: float) -> None:
    """State what a build may need and what is free, and warn where a disk is probably too small;
    one that runs full keeps what is finished.
    """
    estimate = estimate_bytes(portions, growth=growth)
    held = sum(path.stat().st_size for path in (dataset_dir / FOLDER).rglob("*") if path.is_file())
    free = shutil.disk_usage(dataset_dir).free
    needs = f"up to {_size(max(estimate - held, 0))} of disk while it is built"
    line = f"{dataset_dir}: {needs}, {_size(free)} are free"
    Console(stderr=True, highlight=False).print(line, soft_wrap=True, markup=False)
    probable = int(estimate * PROBABLE) - held
    if free < probable:
        _LOG.warning(
            "%s: %s are free on its disk, the build probably needs %s or more",
            dataset_dir,
            _size(free),
            _size(probable),
        )


def _size(size: int) -> str:
    """Three digits: `121 MiB`, `2.50 GiB`, `57.1 GiB`."""
    unit, scaled = ("MiB", size / 2**20) if size < 2**30 else ("GiB", size / 2**30)
    digits = max(0, 3 - len(str(int(scaled))))
    return f"{scaled:,.{digits}f} {unit}"


def full_disk_advice(message: str) -> str:
    """What to do, if the message of a failure tells of a full disk."""
    signs = ("No space left", "Disk quota exceeded", "File too large")
    if not any(sign in message for sign in signs):
        return ""
    return "; free space and run the same command again: what is finished is kept"
