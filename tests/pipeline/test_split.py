import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hashes import split_hashes
from pipeline.split import (
    Candidates,
    SplitConfig,
    documents_threshold,
    fraction_threshold,
    merge_candidates,
    no_candidates,
    validation_mask,
)

ROWS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=30)


def candidates(rows):
    hashes, tokens = zip(*rows, strict=True) if rows else ((), ())
    hashes = np.array(hashes, np.uint64)
    return Candidates(hashes, (hashes % 7).astype(np.int64), np.array(tokens, np.int64))


@given(ROWS, ROWS, st.integers(1, 10))
def test_merged_candidates_are_the_smallest_with_summed_tokens(left, right, limit):
    merged = merge_candidates(candidates(left), candidates(right), limit)
    sums = {}
    for value, tokens in [*left, *right]:
        sums[value] = sums.get(value, 0) + tokens
    expected = sorted(sums.items())[:limit]
    assert list(zip(merged.split_hash, merged.weight, strict=True)) == expected
    assert merged.partition.tolist() == [value % 7 for value, _ in expected]


@given(st.lists(ROWS, max_size=4), st.integers(1, 10))
def test_merging_portions_in_any_order_is_the_same(portions, limit):
    def merge(parts):
        merged = no_candidates()
        for rows in parts:
            merged = merge_candidates(merged, candidates(rows), limit)
        return merged

    one, other = merge(portions), merge(portions[::-1])
    assert one.split_hash.tolist() == other.split_hash.tolist()
    assert one.weight.tolist() == other.weight.tolist()


@pytest.mark.parametrize("documents", [1, 17, 1000])
def test_a_number_of_documents_is_exact(documents):
    keys = pa.array([i.to_bytes(16, "big") for i in range(1000)] * 2, pa.binary(16))
    hashes = split_hashes(keys, 3)
    zeros = np.zeros(len(hashes), np.int64)
    found = merge_candidates(no_candidates(), Candidates(hashes, zeros, zeros), documents)
    mask = validation_mask(keys, seed=3, threshold=documents_threshold(found, documents))
    assert mask[:1000].sum() == documents
    assert (mask[:1000] == mask[1000:]).all()


def test_more_documents_than_there_are():
    assert documents_threshold(candidates([(5, 1)]), 10) == 6
    assert documents_threshold(no_candidates(), 10) == 0


def test_fractions():
    keys = pa.array([i.to_bytes(16, "big") for i in range(10_000)], pa.binary(16))
    shares = [
        validation_mask(keys, seed=0, threshold=fraction_threshold(fraction)).mean()
        for fraction in (0.0, 0.1, 0.5)
    ]
    assert shares[0] == 0
    assert abs(shares[1] - 0.1) < 0.015  # five standard deviations
    assert abs(shares[2] - 0.5) < 0.025


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.0}, "fraction 1.0: at least 0 and less than 1"),
        ({"fraction": -0.1}, "fraction -0.1"),
        ({"documents": 0}, "documents 0: 1 to 1000000"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)
