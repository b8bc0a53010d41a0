import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from pipeline.batch import ENCODED
from pipeline.blocks import TokenBlocks
from pipeline.plan import PlannedShard
from pipeline.shards import ShardSettings, finished_row, write_planned
from pipeline.work import WorkFolder

SETTINGS = ShardSettings(
    cutter=TokenBlocks("uint16", 4), chunk_bytes=4096, deduplicate=True, split_seed=0
)
PLANNED = PlannedShard(
    name="train-000002", split="train", first=0, stop=4096, weight=9, split_threshold=0,
    fingerprint="f",
)  # fmt: skip


def piece(*rows):
    """Rows of hash, key byte, source, position, tokens."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "hash": hashed,
                "key": bytes(15) + bytes([key]),
                "source": source,
                "position": position,
                "bytes": 10,
                "weight": len(tokens),
                "payload": np.array(tokens, np.uint16).tobytes(),
            }
            for hashed, key, source, position, tokens in rows
        ],
        schema=ENCODED.insert(0, pa.field("hash", pa.uint64())),
    )


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(str(tmp_path / "dataset" / ".work"))
    folder.create()
    return folder


PIECES = [
    piece((9, 1, "b", 0, [1, 0]), (5, 2, "b", 7, [2, 2, 0]), (9, 3, "a", 4, [3, 0])),
    piece(),
    piece((5, 2, "a", 9, [4, 4, 4, 4, 0]), (5, 2, "a", 8, [5, 0])),
]


def tokens_of(work):
    path = str(work.shards / "train-000002.tar")
    return [
        np.load(io.BytesIO(sample["tokens.npy"])).tolist()
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    ]


@pytest.mark.parametrize("pieces", [PIECES, PIECES[::-1]])
def test_order_duplicates_and_blocks(work, pieces):
    """By hash, then key; of key 2 the smallest origin (a, 8) stays."""
    assert write_planned((PLANNED, pieces), work=work, settings=SETTINGS) == "train-000002"
    assert tokens_of(work) == [[5, 0, 1, 0], [3, 0]]
    row = finished_row(work, PLANNED)
    assert (row.documents, row.text_bytes, row.shard.tokens, row.lengths) == (3, 30, 6, (0, 3))
    (duplicates,) = row.duplicates
    assert (duplicates.stage, duplicates.reason) == ("deduplicate", "duplicate")
    assert (duplicates.records, duplicates.bytes) == (2, 20)
    rejects = work.rejects / "deduplicate" / "shard-train-000002.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(rejects.read_bytes()).splitlines()]
    assert [(one["source"], one["position"]) for one in rows] == [("a", 9), ("b", 7)]
    assert {one["detail"] for one in rows} == {"same text as a at 8"}


def test_without_deduplication_copies_stay_side_by_side(work):
    keeping = ShardSettings(
        cutter=TokenBlocks("uint16", 99), chunk_bytes=4096, deduplicate=False, split_seed=0
    )
    write_planned((PLANNED, PIECES), work=work, settings=keeping)
    assert tokens_of(work) == [[5, 0, 4, 4, 4, 4, 0, 2, 2, 0, 1, 0, 3, 0]]


def test_a_finished_shard_is_not_written_again(work):
    write_planned((PLANNED, PIECES), work=work, settings=SETTINGS)
    before = (work.shards / "train-000002.tar").stat().st_mtime_ns
    write_planned((PLANNED, None), work=work, settings=SETTINGS)  # None cannot be read
    assert (work.shards / "train-000002.tar").stat().st_mtime_ns == before


def test_a_finished_shard_may_lie_in_the_dataset_already(work):
    write_planned((PLANNED, PIECES), work=work, settings=SETTINGS)
    for path in work.shards.glob("*.tar*"):
        path.rename(work.root.parent / path.name)
    assert finished_row(work, PLANNED) is not None


@pytest.mark.parametrize("damage", ["tar", "idx", "cut", "row", "fingerprint"])
def test_what_is_damaged_is_not_finished(work, damage):
    write_planned((PLANNED, PIECES), work=work, settings=SETTINGS)
    tar, planned = work.shards / "train-000002.tar", PLANNED
    if damage == "tar":
        tar.unlink()
    elif damage == "idx":
        (work.shards / "train-000002.tar.idx").unlink()
    elif damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "row":
        work.shard_row("train-000002").write_text("{")
    else:
        planned = PlannedShard("train-000002", "train", 0, 4096, 9, 0, "g")
    assert finished_row(work, planned) is None


def test_validation_takes_what_train_leaves(work):
    """With a threshold in the middle, each document is in one of two shards."""
    rows = [(i, i, "a", i, [i, 0]) for i in range(1, 100)]
    counts = {}
    for split in ("train", "validation"):
        planned = PlannedShard(f"{split}-000000", split, 0, 4096, 9, 2**63, "f")
        write_planned((planned, [piece(*rows)]), work=work, settings=SETTINGS)
        counts[split] = finished_row(work, planned).documents
    assert sum(counts.values()) == 99
    assert min(counts.values()) > 25
