"""config.json and weight files of a model of ours, written and read back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.huggingface.beside import as_json
from training.huggingface.entries import to_theirs
from training.huggingface.folder import CONFIG, Folder
from training.huggingface.layouts import Layout
from training.huggingface.shards import check_space, write_shards


def write_model(
    folder: Path,
    layout: Layout,
    config: Any,
    state: Mapping[str, Tensor],
    *,
    others: Mapping[str, Any],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> int:
    """Write a model that the layout can tell; the number of numbers in the files.

    `others` are keys of config.json that do not follow from the model's config.

    Raises:
        ValueError: a weight is too large for the dtype.
        OSError: no space, no permission, or what is read back is not what was written.
    """
    weights = to_theirs(layout.entries(config), state)
    check_space(weights, folder, dtype=dtype)
    tree = {**layout.write_config(config), **others, "dtype": str(dtype).removeprefix("torch.")}
    (folder / CONFIG).write_bytes(as_json(tree))
    write_shards(weights, folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    _read_back(folder, weights, dtype)
    return sum(weight.numel() for weight in weights.values())


def _read_back(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Compare the files with what was to be written, bit by bit."""
    folder = Folder(path)
    if folder.places.keys() != weights.keys():
        raise OSError(f"{path}: the files, read back, hold other weights than were written")
    for name, weight in weights.items():
        stored, wished = folder.read(name), weight.to(dtype)
        bits = [one.contiguous().view(torch.uint8) for one in (stored, wished)]
        if stored.dtype != dtype or not torch.equal(*bits):
            raise OSError(f"{path}: {name}, read back, is not what was written; a failing disk?")
