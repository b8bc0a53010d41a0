"""Resuming at another world size or ZeRO stage: each rank reads its elements out of all files.

Nothing is converted and nothing written: the files are mapped into memory, and of each only what
this rank needs is read. DeepSpeed's universal format does not serve here: its loader of one stage
asks for what only the converter of the same stage writes, so it changes no stage; it knows neither
stage 0 nor our average of the weights; and it writes the state twice, each moment of each weight in
a file of its own.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import distributed, ema
from training.ema import Average
from training.layout import Layout, Transfer, find_transfers, read_layouts
from training.partition import Partition

PREFIX = "model."
"""Of names in DeepSpeed's files, where the model lies in an objective."""
SILENCE_SECONDS = 10.0
"""A reading that takes longer tells how far it is, so often."""


def load_resharded(
    checkpoint_dir: Path,
    partition: Partition,
    average: Average | None,
    *,
    tag: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Fill this rank's weights, moments and average; return what rank 0 has written of the engine.

    Raises:
        ValueError: the checkpoint lacks elements of a weight.
    """
    folder, sources = checkpoint_dir / tag, read_layouts(checkpoint_dir)
    plans = [find_transfers(source.pieces, partition.layout().pieces) for source in sources]
    _check(plans, partition, checkpoint_dir)
    told = time.monotonic()
    for rank, (source, transfers) in enumerate(zip(sources, plans, strict=True)):
        if transfers:
            _fill(partition, _read_flats(folder, source, rank), transfers)
            if average:
                _fill_average(average, ema.part_path(checkpoint_dir, rank), transfers)
        if time.monotonic() - told > SILENCE_SECONDS:
            told = time.monotonic()
            say(f"reading {checkpoint_dir}: {rank + 1} of {len(sources)} ranks' files")
    first: dict[str, Any] = _load(_model_path(folder, sources[0], 0))
    _fill_rest(partition, folder, sources[0], first)
    partition.publish()
    if average and not ema.part_path(checkpoint_dir, 0).exists():
        average.restart(partition.masters())  # the run had none so far
    return first


def _check(plans: Sequence[Sequence[Transfer]], partition: Partition, found: Path) -> None:
    """Every rank finds all of its elements, or all ranks refuse."""
    count = sum(transfer.count for transfers in plans for transfer in transfers)
    needed = sum(piece.count for piece in partition.layout().pieces)
    for rank, (has, needs) in enumerate(distributed.gather((count, needed))):
        if has != needs:
            raise ValueError(f"{found}: holds {has:,} of the {needs:,} elements of rank {rank}")


def _read_flats(folder: Path, source: Layout, rank: int) -> dict[str, dict[str, Any]]:
    """The flat tensors of a rank, with the optimizer's states of each under their names."""
    if source.zero_stage == 0:
        saved = _load(_model_path(folder, source, rank))
        weights, states = saved["module"], saved["optimizer"]["state"]
        named = (weights[PREFIX + piece.flat].flatten() for piece in source.pieces)  # (count,)
        flats = {piece.flat: weight for piece, weight in zip(source.pieces, named, strict=True)}
    else:
        (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        saved = _load(path)["optimizer_state_dict"]
        last = source.zero_stage == 3
        masters = saved["fp32_flat_groups" if last else "single_partition_of_fp32_groups"]
        states = saved["optimizer_state_dict" if last else "base_optimizer_state"]["state"]
        flats = {str(number): master for number, master in enumerate(masters)}
    return {
        name: {"master": flat, **states.get(number, {})}
        for number, (name, flat) in enumerate(flats.items())
    }


@torch.no_grad()
def _fill(
    partition: Partition, flats: dict[str, dict[str, Any]], transfers: Sequence[Transfer]
) -> None:
    masters, states = partition.masters(), partition.states()
    for name, of_target in itertools.groupby(transfers, key=lambda transfer: transfer.target):
        with partition.resident(name):
            for transfer in of_target:
                _fill_piece(
                    partition, flats[transfer.source], masters[name], states[name], transfer
                )


def _fill_piece(
    partition: Partition,
    source: dict[str, Any],
    master: Tensor,
    state: dict[str, Any],
    transfer: Transfer,
) -> None:
    for kind, values in source.items():
        if kind == "master":
            _copy(values, master, transfer)
        elif values.dim() == 0:  # the count of steps
            state[kind] = values.to(partition.step_device(master), copy=True)
        else:
            if kind not in state:  # BF16_Optimizer makes moments at its first step
                state[kind] = torch.zeros_like(master)
            _copy(values, state[kind], transfer)


def _copy(source: Tensor, target: Tensor, transfer: Transfer) -> None:
    values = source.flatten()[transfer.source_start :][: transfer.count]  # (count,)
    target.view(-1)[transfer.target_start :][: transfer.count].copy_(values)  # (count,)


@torch.no_grad()
def _fill_average(average: Average, path: Path, transfers: Sequence[Transfer]) -> None:
    if path.exists():
        saved = _load(path)
        average.num_updates = saved["num_updates"]
        for transfer in transfers:
            means = average.means[transfer.target]
            _copy(saved["means"][transfer.source], means, transfer)


@torch.no_grad()
def _fill_rest(partition: Partition, folder: Path, source: Layout, first: dict[str, Any]) -> None:
    """Frozen weights, and buffers, which every rank has whole."""
    for name, buffer in partition.buffers():
        buffer.copy_(first["module"][PREFIX + name])
    frozen = dict(partition.frozen())
    if not frozen:
        return
    if source.zero_stage == 3:
        paths = (_model_path(folder, source, rank) for rank in range(source.world_size))
        parts = [_load(path)["frozen_param_fragments"] for path in paths]
    else:
        parts = [first["module"]]
    for name, weight in frozen.items():
        whole = torch.cat([part[PREFIX + name].flatten() for part in parts])  # (count,)
        partition.set_frozen(weight, whole)


def _model_path(folder: Path, source: Layout, rank: int) -> Path:
    part = f"zero_pp_rank_{rank}_" if source.zero_stage == 3 else ""
    return folder / f"{part}mp_rank_00_model_states.pt"


def _load(path: Path) -> Any:
    """Read by the operating system when it is used, and only then; written by this run."""
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)
