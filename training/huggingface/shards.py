"""Weights into safetensors: one file, or several of a size with an index, as transformers does."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from training.huggingface.folder import INDEX, WEIGHTS


def check_space(weights: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype) -> None:
    """Refuse a disk without room for the weights.

    Raises:
        OSError: with what is needed and what is free.
    """
    needed = sum(weight.numel() for weight in weights.values()) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder.parent}: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free"
        )


def write_shards(
    weights: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """Write weights in a dtype; copies of one file's weights are in memory at a time.

    Raises:
        ValueError: a number is too large for the dtype.
        OSError: no space or no permission.
    """
    shards = plan_shards(
        {name: weight.numel() * dtype.itemsize for name, weight in weights.items()},
        max_shard_bytes=max_shard_bytes,
    )
    names = [WEIGHTS]
    if len(shards) > 1:
        stem = Path(WEIGHTS).stem
        total = len(shards)
        names = [f"{stem}-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
    for file, shard in zip(names, shards, strict=True):
        converted = {name: _as(weights[name], dtype, name) for name in shard}
        try:
            save_file(converted, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # its own class, also for a full disk
            raise OSError(f"{folder / file}: {error}") from None
    if len(shards) > 1:
        _write_index(weights, dict(zip(names, shards, strict=True)), folder, dtype)


def plan_shards(sizes: Mapping[str, int], *, max_shard_bytes: int) -> list[list[str]]:
    """Weights of each file, in order; one that is larger than a file may be has its own."""
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _as(weight: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    converted = weight.to(dtype)
    if not torch.equal(converted.isfinite(), weight.isfinite()):
        largest = weight[weight.isfinite()].abs().max().item()
        raise ValueError(f"{name} holds {largest:.3g}, too large for {dtype}; take bf16 or fp32")
    return converted.contiguous()


def _write_index(
    weights: Mapping[str, Tensor],
    shards: Mapping[str, list[str]],
    folder: Path,
    dtype: torch.dtype,
) -> None:
    num_weights = sum(weight.numel() for weight in weights.values())
    index = {
        "metadata": {
            "total_parameters": num_weights,
            "total_size": num_weights * dtype.itemsize,
        },
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
