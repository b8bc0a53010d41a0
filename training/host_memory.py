"""Copies of a checkpoint's state in host memory, from which a thread writes while training goes on.

The copies keep their buffers from one checkpoint to the next: pinning memory takes longer than
copying into it. A rank so needs host memory for its whole share of the state, on a GPU pinned.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class HostMemory:
    """Buffers for one copy of the state; the next copy overwrites the one before."""

    def __init__(self) -> None:
        self.spare: dict[tuple[Any, ...], list[Tensor]] = {}
        self.used: dict[tuple[Any, ...], list[Tensor]] = {}

    def copy(self, state: Any) -> Any:
        """The state as it is now, its tensors in host memory; the last copy must be done with.

        Raises:
            RuntimeError: not enough memory.
        """
        self.spare, self.used = self.used, {}
        copied = self._copy(state, {})
        self.spare = {}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffers in self.used.values() for buffer in buffers)

    def _copy(self, value: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
        """Containers anew, tensors into buffers, tied ones into the same; the rest is small."""
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if key not in copies or not value.numel():
                copies[key] = self._buffer(value).copy_(value.detach(), non_blocking=True)
            return copies[key]
        if type(value) in (dict, OrderedDict):
            return type(value)((key, self._copy(one, copies)) for key, one in value.items())
        if type(value) in (list, tuple):
            return type(value)(self._copy(one, copies) for one in value)
        return copy.deepcopy(value)

    def _buffer(self, tensor: Tensor) -> Tensor:
        key = (tensor.shape, tensor.dtype, tensor.is_cuda)
        spare = self.spare.get(key)
        buffer = spare.pop() if spare else self._allocate(tensor)
        self.used.setdefault(key, []).append(buffer)
        return buffer

    @staticmethod
    def _allocate(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def count_bytes(state: Any) -> int:
    """Of the memory behind all tensors of a state, shared memory once: what torch.save writes."""
    storages = {tensor.untyped_storage() for tensor in _tensors(state)}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(sizes.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
