"""A whole text dataset, small enough to damage it in every way."""

import gzip
import json

import numpy as np
import pytest

from pipeline.blocks import cut_blocks
from pipeline.index import write_sidecars
from pipeline.manifest import Manifest, write_manifest
from pipeline.report import write_report
from pipeline.tar import write_shard
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer

END = "<|endoftext|>"
ALPHABET = "abcdefgh"
STAGES = ("quality", "read")


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
    write_report(report_of(manifest), folder)
    (folder / "rejects").mkdir()
    for stage in STAGES:
        lines = (render_reject(stage, reason) for reason in "ab")
        (folder / "rejects" / f"{stage}.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))


def render_reject(stage, reason):
    row = {"stage": stage, "reason": reason, "detail": "", "source": "x", "position": 0}
    return json.dumps({**row, "bytes": 7, "excerpt": ""}).encode() + b"\n"


def report_of(manifest):
    """The report of a build that rejected a document of 7 bytes for each stage and reason."""
    rejects = [(stage, reason) for stage in STAGES for reason in "ab"]
    return {
        "kind": manifest.kind,
        "seconds": 1.0,
        "corpus": {"files": 1, "bytes": 99},
        "funnel": [],
        "rejects": [
            {"stage": stage, "reason": reason, "records": 1, "bytes": 7, "examples": []}
            for stage, reason in rejects
        ],
        "splits": {
            split: {
                "documents": 6,
                "tokens": sum(shard.tokens for shard in shards),
                "shards": len(shards),
                "bytes": sum(shard.bytes for shard in shards),
            }
            for split, shards in manifest.splits.items()
        },
        "lengths": [],
        "shards": [
            {"name": shard.name, "documents": 6}
            | {name: getattr(shard, name) for name in ("samples", "tokens", "bytes")}
            for shards in manifest.splits.values()
            for shard in shards
        ],
    }


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
