from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import partition_bits, partitions, plan_shards, read_plan, write_plan

COUNTS = st.lists(st.integers(0, 100), min_size=8, max_size=8)


def plan(train, validation, target):
    return plan_shards(
        np.array([train, validation]), split_threshold=5, target_weight=target, fingerprint="f"
    )


@given(COUNTS, COUNTS, st.integers(1, 400))
def test_shards_cover_every_token_once_and_none_is_empty(train, validation, target):
    shards = plan(train, validation, target).shards
    for split, counts in (("train", train), ("validation", validation)):
        own = [shard for shard in shards if shard.split == split]
        assert [shard.name for shard in own] == [f"{split}-{i:06d}" for i in range(len(own))]
        assert sum(shard.weight for shard in own) == sum(counts)
        assert all(shard.weight > 0 for shard in own)
        assert all(a.stop == b.first for a, b in zip(own, own[1:], strict=False))
        if own:
            assert (own[0].first, own[-1].stop) == (0, 8)


def test_sizes_are_near_the_target():
    counts = np.random.default_rng(0).integers(0, 50, 4096)
    shards = plan(counts, counts * 0, 4000).shards
    assert len(shards) == round(counts.sum() / 4000)
    sizes = np.array([shard.weight for shard in shards])
    assert abs(sizes / 4000 - 1).max() < 0.03


def test_the_plan_carries_what_shards_need():
    found = plan([1, 0], [0, 1], 10)
    assert (found.partition_bits, found.split_threshold) == (1, 5)
    assert [(s.split_threshold, s.fingerprint) for s in found.shards] == [(5, "f"), (5, "f")]


@pytest.mark.parametrize(
    ("corpus_bytes", "target_bytes", "bits"),
    [(0, 2**28, 12), (2**30, 2**28, 12), (2**36, 2**28, 15), (2**50, 2**28, 16), (10, 1, 12)],
)
def test_partition_bits(corpus_bytes, target_bytes, bits):
    assert partition_bits(corpus_bytes, target_bytes) == bits


def test_partitions_are_leading_bits():
    hashes = np.array([0, 2**60, 2**63, 2**64 - 1], np.uint64)
    assert partitions(hashes, 4).tolist() == [0, 1, 8, 15]


def test_a_plan_is_read_as_it_was_written(tmp_path):
    found = plan([1, 5, 0, 9], [0, 0, 3, 1], 4)
    full = replace(found, split_threshold=2**64 - 1, spills=("000000-0.arrow", "000001-0.arrow"))
    paths = [write_plan(one, tmp_path) for one in (found, full, found)]
    assert [read_plan(path) for path in paths] == [found, full, found]
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 2
