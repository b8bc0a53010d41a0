"""The random generators of a rank in a checkpoint: dropout, masks, augmentations on the device."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import distributed


def random_state() -> dict[str, Any]:
    """Where this rank's generators are."""
    on_cuda = torch.cuda.is_available()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  (what libraries below us draw from)
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if on_cuda else None,
    }


def random_path(checkpoint_dir: Path, rank: int) -> Path:
    """Where a rank's state lies in a checkpoint."""
    return checkpoint_dir / f"rank-{rank:05d}.pt"


def restore_random_state(
    checkpoint_dir: Path, *, seed: int, step: int, ranks_per_group: int = 1
) -> None:
    """Set this rank's generators to where the checkpoint found them.

    A rank that it does not know, since fewer have written it, begins at a seed that follows from
    the run's `seed`, the step and the rank alone. The ranks of a group go on as its first one.
    """
    rank = distributed.rank() // ranks_per_group * ranks_per_group
    path = random_path(checkpoint_dir, rank)
    if not path.exists():
        _seed_all(f"{seed} {step} {rank}")
        return
    state: dict[str, Any] = torch.load(path, weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])


def _seed_all(words: str) -> None:
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
