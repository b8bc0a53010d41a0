import io
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.blocks import cut_blocks


def decode(sample):
    load = {
        name: np.load(io.BytesIO(content), allow_pickle=False)
        for name, content in sample.files.items()
        if name.endswith(".npy")
    }
    return load["tokens.npy"], load["docs.npy"], json.loads(sample.files["json"])


def test_the_example_of_the_docstring():
    tokens = np.array([1, 2, 0, 3, 4, 5, 0], np.uint16)
    keys = ["a" * 32, "b" * 32]
    samples = list(cut_blocks("train-000003", tokens, np.array([0, 3]), keys, block_tokens=4))
    assert [sample.key for sample in samples] == ["train-000003-000000", "train-000003-000001"]
    assert [sample.tokens for sample in samples] == [4, 3]
    first, second = map(decode, samples)
    assert (first[0].tolist(), first[1].tolist()) == ([1, 2, 0, 3], [0, 3])
    assert (second[0].tolist(), second[1].tolist()) == ([4, 5, 0], [])
    assert first[2] == {"documents": ["a" * 16, "b" * 16], "tokens": 4}
    assert second[2] == {"documents": ["b" * 16], "tokens": 3}
    assert (first[0].dtype, first[1].dtype) == (np.uint16, np.uint32)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_blocks_are_the_stream_cut_evenly(lengths, block_tokens):
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    keys = [f"{i:032x}" for i in range(len(lengths))]
    samples = list(cut_blocks("train-000000", tokens, starts, keys, block_tokens=block_tokens))
    parts = [decode(sample) for sample in samples]
    assert np.concatenate([part[0] for part in parts]).tolist() == tokens.tolist()
    assert {len(part[0]) for part in parts[:-1]} <= {block_tokens}
    assert 0 < len(parts[-1][0]) <= block_tokens
    offsets = np.arange(len(parts)) * block_tokens
    found = [
        int(at + offset) for part, offset in zip(parts, offsets, strict=True) for at in part[1]
    ]
    assert found == starts.tolist()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for part, offset in zip(parts, offsets, strict=True):
        inside = np.unique(owner[offset : offset + len(part[0])])
        assert part[2]["documents"] == [keys[i][:16] for i in inside]
