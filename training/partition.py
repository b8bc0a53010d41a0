"""This rank's part of what DeepSpeed's optimizer keeps: fp32 weights, moments, and where they lie.

The names of DeepSpeed's attributes for it, which differ between ZeRO stages, stand here alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import distributed
from training.deepspeed_config import Config
from training.layout import Layout, Piece, layout_path


class Partition:
    """The flat fp32 tensors of one rank; at stage 0 these are the weights themselves, by name."""

    def __init__(self, optimizer: Any, model: nn.Module, config: Config) -> None:
        """Of the optimizer that DeepSpeed gave back, and the bare model."""
        size = config.tensor_parallel_size
        self.world_size = distributed.world_size() // size
        """Of the ranks that divide the same weights among them; others have other slices."""
        self.rank, self.place = divmod(distributed.rank(), size)
        """Among these, and in the group that holds all slices."""
        self.part = distributed.rank() if config.zero_stage else self.place
        """The rank whose files of a checkpoint this one reads; at stage 0 others hold the same."""
        self.optimizer = optimizer
        self.model = model
        self.zero_stage = config.zero_stage
        self.names = {parameter: name for name, parameter in model.named_parameters()}

    def masters(self) -> dict[str, torch.Tensor]:
        """The fp32 weights that the optimizer steps, by the name of their flat tensor."""
        if self.zero_stage == 0:
            return {self.names[one]: one for one in self._stepped()}
        return {str(number): flat for number, flat in enumerate(self._flats())}

    def states(self) -> dict[str, dict[str, Any]]:
        """What the optimizer remembers of each of them, live: moments, and the count of steps."""
        state = self.optimizer.state if self.zero_stage == 0 else self.optimizer.optimizer.state
        return {name: state[master] for name, master in self.masters().items()}

    @contextmanager
    def resident(self, name: str) -> Iterator[None]:
        """Inside, a flat tensor and its states are in memory, also where they lie in files."""
        swaps = getattr(self.optimizer, "swap_optimizer", False)  # stage 3 alone knows of it
        swaps = swaps and self.optimizer._swappable_optimizer_subgroup(int(name))
        if swaps:
            self.optimizer._optimizer_states_and_gradient_swap_in(int(name))
        yield
        if swaps:
            self.optimizer._optimizer_states_and_gradient_swap_out(int(name))

    def step_device(self, master: torch.Tensor) -> torch.device:
        """Where torch's optimizer looks for the count of steps of a flat tensor."""
        group = self.optimizer.param_groups[0]
        on_device = group.get("fused") or group.get("capturable")
        return master.device if on_device else torch.device("cpu")

    def publish(self) -> None:
        """Bring the fp32 weights into the model that computes, on all ranks."""
        if self.zero_stage in (1, 2):
            self.optimizer.update_lp_params()
        if self.zero_stage == 3:
            self.optimizer.checkpoint_event_prologue()  # partitions what is gathered
            for number in range(len(self.optimizer.fp16_groups)):
                with self.resident(str(number)):
                    self.optimizer._reassign_or_swap_out_partitioned_parameters(number)
            self.optimizer.checkpoint_event_epilogue()  # gathers what stays so

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Those that a checkpoint holds."""
        saved = self.model.state_dict().keys()
        return ((name, one) for name, one in self.model.named_buffers() if name in saved)

    def frozen(self) -> Iterator[tuple[str, Any]]:
        """Weights that no optimizer steps."""
        return ((name, one) for one, name in self.names.items() if not one.requires_grad)

    def set_frozen(self, weight: Any, values: torch.Tensor) -> None:
        """Give a frozen weight its values, flattened; at stage 3 this rank takes its share."""
        if self.zero_stage != 3:
            weight.view(-1).copy_(values[: weight.numel()])  # (count,)
            return
        share = weight.ds_tensor.ds_numel
        own = values[: weight.ds_numel][self.rank * share :][:share]  # (count,)
        weight.ds_tensor.view(-1)[: len(own)].copy_(own)  # (count,)

    def layout(self) -> Layout:
        """Where each weight lies in these tensors."""
        pieces = {0: self._whole_weights, 3: self._parts_of_weights}.get(
            self.zero_stage, self._parts_of_groups
        )
        kind = type(self.optimizer).__name__
        return Layout(self.zero_stage, self.world_size, kind, list(pieces()))

    def was_written(self, checkpoint_dir: Path) -> bool:
        """Whether every rank finds the files that it has written itself, or one alike."""
        path, ours = layout_path(checkpoint_dir, self.part), self.layout().to_json()
        return all(distributed.gather(path.exists() and path.read_text() == ours))

    def _stepped(self) -> Iterator[nn.Parameter]:
        """Stage 0: in the order of the optimizer, which numbers its states so."""
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _flats(self) -> list[torch.Tensor]:
        attribute = "single_partition_of_fp32_groups"
        if self.zero_stage == 3:
            attribute = "fp32_partitioned_groups_flat"
        elif hasattr(self.optimizer, "bf16_groups"):  # BF16_Optimizer: stage 1 in bf16
            attribute = "fp32_groups_flat_partition"
        flats: list[torch.Tensor] = getattr(self.optimizer, attribute)
        return flats

    def _whole_weights(self) -> Iterator[Piece]:
        for weight in self._stepped():
            name = self.names[weight]
            yield Piece(name, 0, name, 0, weight.numel())

    def _parts_of_groups(self) -> Iterator[Piece]:
        """Stages 1 and 2: weights behind one another, cut into as many parts as ranks."""
        ours = "bf16_groups" if hasattr(self.optimizer, "bf16_groups") else "bit16_groups"
        for number, group in enumerate(getattr(self.optimizer, ours)):
            for weight in group:
                if weight._hp_mapping:  # else it lies in other ranks' parts
                    start = weight._hp_mapping.hp_fragment_address.start
                    within = weight._hp_mapping.lp_fragment_address
                    name = self.names[weight]
                    yield Piece(str(number), start, name, within.start, within.numel)

    def _parts_of_weights(self) -> Iterator[Piece]:
        """Stage 3: of each weight the same share on every rank, the last one padded."""
        for number, group in enumerate(self.optimizer.fp16_groups):
            start = 0
            for weight in group:
                share = weight.ds_tensor.ds_numel
                offset = self.rank * share
                count = max(0, min(share, weight.ds_numel - offset))
                yield Piece(str(number), start, self.names[weight], offset, count)
                start += share
