"""A whole text dataset, small enough to damage it in every way."""

import gzip

import numpy as np
import pytest

from pipeline.blocks import cut_blocks
from pipeline.index import write_sidecars
from pipeline.manifest import Manifest, write_manifest
from pipeline.tar import write_shard
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer

END = "<|endoftext|>"
ALPHABET = "abcdefgh"


@pytest.fixture
def text_dataset(tmp_path):
    """Two train shards of three blocks and one validation shard of one, in chunks of a block."""
    text = characters_tokenizer(ALPHABET, end_of_document=END)
    (tmp_path / "tokenizer.json").write_bytes(text.encode())
    splits = {
        "train": tuple(make_shard(tmp_path, f"train-{i:06d}", seed=i) for i in range(2)),
        "validation": (make_shard(tmp_path, "validation-000000", seed=9, documents=2),),
    }
    manifest = Manifest(
        kind="text",
        splits=splits,
        config={"shuffle_seed": 0},
        libraries={},
        tokenizer=describe_tokenizer(text, end_of_document=END),
        token_dtype="uint16",
    )
    write_manifest(manifest, tmp_path)
    write_beside(manifest, tmp_path)
    return tmp_path


def write_beside(manifest, folder):
    write_sidecars(manifest, folder)
    (folder / "config.yaml").write_text("shuffle_seed: 0\n")
    (folder / "report.json").write_text("{}")
    (folder / "report.html").write_text("<!doctype html>")
    (folder / "rejects").mkdir()
    for stage in ("read", "quality"):
        lines = gzip.compress(b'{"reason": "a"}\n') + gzip.compress(b'{"reason": "b"}\n')
        (folder / "rejects" / f"{stage}.jsonl.gz").write_bytes(lines)


def make_shard(folder, name, *, seed, documents=6):
    rng = np.random.default_rng(seed)
    lengths = [20] * documents  # blocks of 50: some begin inside a document
    ends = np.cumsum(lengths)
    tokens = rng.integers(0, len(ALPHABET), ends[-1]).astype(np.uint16)
    tokens[ends - 1] = len(ALPHABET)
    keys = [rng.bytes(16).hex() for _ in lengths]
    samples = cut_blocks(name, tokens, ends - 20, keys, block_tokens=50)
    return write_shard(folder / f"{name}.tar", samples, chunk_bytes=1)


@pytest.fixture
def damage():
    """`damage(dataset, change, expected)`: the change gives these faults and no others.

    Each expected one is its rule, a part of where, a part of the message.
    """
    from pipeline.verify import verify

    def check(folder, change, expected):
        change(folder)
        found = [(fault.rule, fault.where, fault.message) for fault in verify(folder)]
        assert len(found) == len(expected), found
        for (rule, where, message), (its_rule, its_where, its_message) in zip(
            expected, found, strict=True
        ):
            assert rule == its_rule
            assert where in its_where
            assert message in its_message

    return check
