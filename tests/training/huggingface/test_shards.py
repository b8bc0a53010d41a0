"""Weight files: which weight lies where, what is refused."""

import json
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from training.huggingface import shards
from training.huggingface.shards import check_space, plan_shards, write_shards


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([3, 3, 3], [[0, 1], [2]]),
        ([1, 9, 1, 1], [[0], [1], [2, 3]]),
        ([9], [[0]]),
        ([6], [[0]]),
        ([3, 4, 2, 6], [[0], [1, 2], [3]]),
    ],
)
def test_plan(sizes, expected):
    names = {str(number): size for number, size in enumerate(sizes)}
    found = plan_shards(names, max_shard_bytes=6)
    assert found == [[str(number) for number in shard] for shard in expected]


def test_an_index_tells_where_each_weight_is(tmp_path):
    weights = {name: torch.full((2, 3), float(n)) for n, name in enumerate("abc")}
    write_shards(weights, tmp_path, dtype=torch.bfloat16, max_shard_bytes=24)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_parameters": 18, "total_size": 36},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }
    for name, weight in weights.items():
        stored = load_file(tmp_path / index["weight_map"][name])[name]
        assert stored.dtype == torch.bfloat16
        assert torch.equal(stored.float(), weight)


def test_views_of_one_weight(tmp_path):
    """Queries and keys are rows of one weight; a projection of GPT-2 is one transposed."""
    whole = torch.arange(12.0).reshape(4, 3)
    weights = {"q": whole[:2], "k": whole[2:], "t": whole.T}
    write_shards(weights, tmp_path, dtype=torch.float32, max_shard_bytes=2**20)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], weight) for name, weight in weights.items())


def test_numbers_beyond_fp16_are_refused(tmp_path):
    weights = {"a": torch.tensor([1.0, -70_000.0, float("inf")])}
    with pytest.raises(ValueError, match=r"^a holds 7e\+04, too large for torch.float16; take"):
        write_shards(weights, tmp_path, dtype=torch.float16, max_shard_bytes=100)


def test_a_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage(2**30))
    weights = {"a": torch.empty(2**28 + 1, device="meta")}
    with pytest.raises(OSError, match=r"1.0 GiB are needed, 1.0 are free"):
        check_space(weights, tmp_path, dtype=torch.float32)
    check_space(weights, tmp_path, dtype=torch.bfloat16)


def test_a_disk_that_becomes_full(tmp_path, full_disk):
    with full_disk(1000), pytest.raises(OSError, match=r"model.safetensors: "):
        write_shards({"a": torch.ones(1000)}, tmp_path, dtype=torch.float32, max_shard_bytes=2**20)
