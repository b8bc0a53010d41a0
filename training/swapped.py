"""What DeepSpeed keeps in files, `nvme` for `engine.offload_optimizer` and `offload_parameters`.

DeepSpeed 0.19 copies its files beside a checkpoint and at a resume back, and forgets the rest:
steps are counted from 0 again, and weights whose group is too small for a file are fresh ones. So
here a checkpoint holds what any other of ZeRO stage 3 does, and is read as one. A full disk, for
which DeepSpeed ends the process without a word of Python, is foreseen.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

from training import distributed
from training.deepspeed_config import Config

GIB = 2**30


def prepare_nvme(
    config: Config, builder: Any, *, num_parameters: int, say: Callable[[str], None]
) -> None:
    """Make the folder, and refuse what would end in the middle of a step; all ranks call it.

    `builder` is DeepSpeed's, of its operator for files.

    Raises:
        OSError: the folder cannot be written, or has too little space for the ranks of a node.
        ValueError: DeepSpeed's operator for files cannot be compiled here.
    """
    faults = [fault for fault in distributed.gather(_find_fault(config, num_parameters)) if fault]
    if faults:
        raise OSError(faults[0])
    if not all(distributed.gather(builder.is_compatible(verbose=False))):
        raise ValueError("offload to nvme needs libaio and its headers: install libaio-dev")
    built = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    if not (built / f"{builder.name}.so").exists():
        say(f"DeepSpeed compiles its operator for files into {built}, once, for some minutes")


def with_swapped(files: Mapping[Any, Any], optimizer: Any) -> dict[Any, Any]:
    """The files with what DeepSpeed's optimizer has swapped out in the place of empty tensors.

    It is mapped into memory, read when the checkpoint is written, and right until the next step.
    """
    found: dict[int, Tensor] = {}
    for info in optimizer.optimizer_swapper.swap_params_info.values():
        for tensor in info.tensors:
            found[id(tensor.compute_tensor)] = torch.from_file(
                tensor.swap_path, size=info.numel(), dtype=info.dtype()
            )
    return {path: _replaced(content, found) for path, content in files.items()}


def _find_fault(config: Config, num_parameters: int) -> str:
    """Of this rank's folder; "" = none."""
    folder = Path(config.nvme_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".probe-{distributed.rank()}").open("wb") as probe:
            probe.write(b"1")
        Path(probe.name).unlink()
    except OSError as error:
        return f"engine.nvme_dir={folder}: cannot be written: {error}"
    # fp32 weights, two moments and gradients; weights once more for the forward pass.
    per_parameter = 16 * (config.offload_optimizer == "nvme")
    width = 4 if config.precision == "fp32" else 2
    per_parameter += width * (config.offload_parameters == "nvme")
    ranks = distributed.local_world_size()
    needed = per_parameter * num_parameters * ranks // distributed.world_size()
    # Files of a run before this one are written over.
    there = sum(each.stat().st_size for each in folder.glob("zero_stage_3/**/*.swp"))
    free = shutil.disk_usage(folder).free + there
    if needed <= free:
        return ""
    return (
        f"engine.nvme_dir={folder}: has {free / GIB:.2f} GiB free, and what the {ranks} ranks of "
        f"this node offload takes {needed / GIB:.2f} GiB"
    )


def _replaced(value: Any, found: Mapping[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return found.get(id(value), value)
    if isinstance(value, dict):
        return type(value)((key, _replaced(one, found)) for key, one in value.items())
    if isinstance(value, list):
        return [_replaced(one, found) for one in value]
    return value
