"""The dataset folder as other libraries read it, without conversion."""

import json

import numpy as np
import pytest

from pipeline.blocks import cut_blocks
from pipeline.tar import write_shard

END = 40_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The folder, and the tokens of each shard."""
    folder = tmp_path_factory.mktemp("dataset")
    streams = {}
    for shard in range(2):
        name = f"train-{shard:06d}"
        rng = np.random.default_rng(shard)
        ends = np.cumsum(rng.integers(1, 400, 60))
        tokens = rng.integers(0, END, ends[-1]).astype(np.uint16)
        tokens[ends - 1] = END
        starts = np.concatenate([[0], ends[:-1]])
        keys = [rng.bytes(16).hex() for _ in ends]
        blocks = cut_blocks(name, tokens, starts, keys, block_tokens=1000)
        write_shard(folder / f"{name}.tar", blocks)
        streams[name] = (tokens, starts, keys)
    return folder, streams


def check_samples(samples, streams):
    """Samples as (key, tokens, docs, provenance), in order, against the streams."""
    position = dict.fromkeys(streams, 0)
    for key, tokens, docs, provenance in samples:
        stream, starts, keys = streams[key[:12]]
        first = position[key[:12]]
        stop = first + len(tokens)
        assert key == f"{key[:12]}-{first // 1000:06d}"
        assert tokens.dtype == np.uint16
        assert np.array_equal(tokens, stream[first:stop])
        inside = starts[(starts >= first) & (starts < stop)]
        assert np.array_equal(docs, inside - first)
        last = int(np.searchsorted(starts, stop))
        begin = int(np.searchsorted(starts, first, side="right")) - 1
        assert provenance == {
            "documents": [key[:16] for key in keys[begin:last]],
            "tokens": len(tokens),
        }
        position[key[:12]] = stop
    assert position == {name: len(tokens) for name, (tokens, *_) in streams.items()}


@pytest.mark.slow
def test_webdataset(dataset):
    import webdataset

    folder, streams = dataset
    urls = sorted(map(str, folder.glob("*.tar")))
    samples = [
        (sample["__key__"], sample["tokens.npy"], sample["docs.npy"], sample["json"])
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()
    ]
    assert all(docs.dtype == np.uint32 for _, _, docs, _ in samples)
    check_samples(samples, streams)


@pytest.mark.slow
def test_hugging_face_datasets(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    folder, streams = dataset
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": sorted(map(str, folder.glob("train-*.tar")))},
        split="train",
        cache_dir=str(tmp_path),
    )
    samples = [
        (
            sample["__key__"],
            np.asarray(sample["tokens.npy"]).astype(np.uint16),
            np.asarray(sample["docs.npy"]),
            sample["json"] if isinstance(sample["json"], dict) else json.loads(sample["json"]),
        )
        for sample in loaded
    ]
    check_samples(samples, streams)
