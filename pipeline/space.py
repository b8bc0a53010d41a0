"""Disk space: checked before a build starts, explained when it ran out."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpus import Portion
from pipeline.work import FOLDER

_LOG = logging.getLogger(__name__)

COMPRESSION = 3.0
"""What compressed text grows by, about."""
PROBABLE = 0.5
"""Below this share of the estimate a build is warned of: filters may drop much of a corpus, and
markup around the text any share of it, so nothing is certain before it is read."""

_COMPRESSED = (".gz", ".zst", ".parquet", ".pq", ".bz2", ".xz")


def estimate_bytes(portions: Sequence[Portion], *, growth: float) -> int:
    """What a build will write, at its largest, about."""
    stored = sum(
        portion.bytes * (COMPRESSION if portion.file.url.endswith(_COMPRESSED) else 1)
        for portion in portions
    )
    return int(stored * growth)


def check_free_space(dataset_dir: Path, portions: Sequence[Portion], *, growth: float) -> None:
    """Warn where a disk is probably too small; one that runs full keeps what is finished."""
    needed = int(estimate_bytes(portions, growth=growth) * PROBABLE)
    held = sum(path.stat().st_size for path in (dataset_dir / FOLDER).rglob("*") if path.is_file())
    free = shutil.disk_usage(dataset_dir).free
    if free + held < needed:
        _LOG.warning(
            "%s: %.2f GiB are free on its disk, the build probably needs %.2f GiB or more",
            dataset_dir,
            free / 2**30,
            (needed - held) / 2**30,
        )


def full_disk_advice(message: str) -> str:
    """What to do, if the message of a failure tells of a full disk."""
    signs = ("No space left", "Disk quota exceeded", "File too large")
    if not any(sign in message for sign in signs):
        return ""
    return "; free space and run the same command again: what is finished is kept"
