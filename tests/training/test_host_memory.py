"""Copies of a state in host memory: equal, apart, with the same buffers again."""

from collections import OrderedDict

import pytest
import torch

from training.host_memory import HostMemory, count_bytes


class Scaler:
    def __init__(self):
        self.scale = 8.0


def state_of(number):
    flat = torch.full((4, 3), float(number))
    return {
        "flat": flat,
        "tied": [flat, flat[1:]],
        "shape": flat.shape,
        "moments": OrderedDict(a=torch.full((2,), number, dtype=torch.bfloat16).requires_grad_()),
        "empty": (torch.zeros(0), torch.zeros(0, 3)),
        "transposed": torch.arange(6.0).view(2, 3).T + number,
        "scaler": Scaler(),
        "step": number,
    }


def test_the_copy_is_equal_and_stays_when_the_state_goes_on():
    state = state_of(7)
    copied = HostMemory().copy(state)
    state["flat"].zero_()
    state["scaler"].scale = 4.0
    expected = state_of(7)
    assert copied.keys() == expected.keys()
    for name in ("flat", "transposed"):
        assert torch.equal(copied[name], expected[name])
    assert torch.equal(copied["tied"][1], expected["flat"][1:])
    assert copied["tied"][0] is copied["flat"]  # tied tensors are written once
    assert torch.equal(copied["moments"]["a"], expected["moments"]["a"])
    assert not copied["moments"]["a"].requires_grad
    assert [one.shape for one in copied["empty"]] == [(0,), (0, 3)]
    assert type(copied["shape"]) is torch.Size
    assert (copied["scaler"].scale, copied["step"]) == (8.0, 7)


def test_the_next_copy_takes_the_same_memory():
    memory = HostMemory()
    first, places = memory.copy(state_of(1)), set()
    for number in (2, 3):
        copied = memory.copy(state_of(number))
        assert copied["flat"].data_ptr() == first["flat"].data_ptr()
        assert copied["flat"].unique().item() == number
        places.add(memory.num_bytes)
    assert places == {4 * (12 + 9 + 6) + 2 * 2}


def test_what_is_no_longer_in_the_state_is_let_go():
    memory = HostMemory()
    memory.copy([torch.zeros(1000), torch.zeros(2)])
    memory.copy([torch.zeros(2)])
    memory.copy([torch.zeros(2)])
    assert memory.num_bytes == 8


def test_shared_memory_is_counted_once():
    flat = torch.zeros(10)
    assert count_bytes({"a": flat[:2], "b": (flat[2:], [flat]), "c": torch.zeros(3)}) == 52
    assert count_bytes({"a": 1, "b": "text"}) == 0


@pytest.mark.gpu
def test_of_a_gpu_into_pinned_memory():
    tensor = torch.arange(1_000_000, device="cuda")
    (copied,) = HostMemory().copy([tensor])
    tensor.zero_()
    assert copied.is_pinned()
    assert torch.equal(copied, torch.arange(1_000_000))
