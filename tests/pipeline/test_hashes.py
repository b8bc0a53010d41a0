import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hashes import key_halves, shuffle_hashes, split_hashes, splitmix64

KEYS = st.lists(st.binary(min_size=16, max_size=16), max_size=20)


def keys(values):
    return pa.array(values, pa.binary(16))


def reference(value):
    """splitmix64 as its authors publish it, in Python integers."""
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_splitmix64_is_the_published_one(values):
    assert splitmix64(np.array(values, np.uint64)).tolist() == list(map(reference, values))


def test_splitmix64_known_answer():
    assert splitmix64(np.zeros(1, np.uint64)).tolist() == [0xE220A8397B1DCDAF]


@given(KEYS, st.integers(0, 10))
def test_halves_of_a_slice(values, start):
    halves = key_halves(keys(values).slice(start))
    expected = [
        [int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")] for key in values[start:]
    ]
    assert halves.tolist() == expected


@given(KEYS, st.integers(0, 2**63))
def test_hashes_depend_on_key_and_seed_alone(values, seed):
    hashes = shuffle_hashes(keys(values), seed).tolist()
    assert hashes == [int(shuffle_hashes(keys([value]), seed)[0]) for value in values]


def test_orders_never_change():
    """A published dataset is made again only if these numbers stay."""
    value = keys([bytes(range(16))])
    assert shuffle_hashes(value, 0).tolist() == [13793572659611383026]
    assert shuffle_hashes(value, 1).tolist() == [11648002986216795819]
    assert split_hashes(value, 0).tolist() == [2593159440383264273]


def test_shuffle_and_split_are_unrelated():
    values = keys([i.to_bytes(16, "big") for i in range(10_000)])
    order, split = shuffle_hashes(values, 0), split_hashes(values, 0)
    chosen = order[split < np.uint64(2**63)]
    assert abs(len(chosen) - 5000) < 250  # five standard deviations
    assert abs((chosen < np.uint64(2**63)).mean() - 0.5) < 0.04
