"""The data order's promises, each as a law."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from training.data.order import Order, permutation, run_key, splitmix64

PERMUTATION = [1, 3, 7, 9, 6, 5, 2, 8, 4, 0]
FIRST = [(3, 9), (0, 1), (2, 0), (3, 1), (3, 10), (0, 0), (4, 3), (3, 0)]
SECOND = [(2, 4), (3, 10), (4, 1), (3, 1), (2, 6), (3, 9), (4, 0), (3, 2)]

counts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
orders = st.builds(
    lambda counts, seed, lanes, window: Order(
        counts, fingerprint="f", seed=seed, num_lanes=lanes, window=window
    ),
    counts,
    st.integers(0, 2**40),
    st.integers(1, 50),
    st.integers(1, 20),
)


def places(order, positions):
    return list(zip(*(column.tolist() for column in order.locate(positions)), strict=True))


def every_sample(samples_per_chunk):
    return [(chunk, i) for chunk, n in enumerate(samples_per_chunk) for i in range(n)]


@given(orders, st.integers(0, 5))
def test_every_sample_comes_exactly_once_in_every_epoch(order, epoch):
    n = order.samples_per_epoch
    found = places(order, np.arange(epoch * n, (epoch + 1) * n))
    assert {place[0] for place in found} == {epoch}
    assert sorted(place[1:] for place in found) == every_sample(order.samples_per_chunk)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 257, 4097, 65537])
@pytest.mark.parametrize("num_chunks", [1, 7])
def test_exactly_once_for_sizes_of_a_power_of_two_plus_one(size, num_chunks):
    per_chunk = np.bincount(np.arange(size) % num_chunks, minlength=num_chunks)
    order = Order(per_chunk, fingerprint="f", seed=3)
    _, chunk, sample = order.locate(np.arange(size, 2 * size))
    starts = np.cumsum(per_chunk) - per_chunk
    assert np.array_equal(np.sort(starts[chunk] + sample), np.arange(size))


@given(orders, st.data())
def test_position_of_is_the_inverse_of_locate(order, data):
    position = data.draw(st.integers(0, 4 * order.samples_per_epoch - 1))
    ((epoch, chunk, sample),) = places(order, np.array([position]))
    assert order.position_of(epoch, chunk, sample) == position


@given(orders, st.data())
def test_a_seek_equals_the_unbroken_stream(order, data):
    length = 3 * order.samples_per_epoch
    start = data.draw(st.integers(0, length - 1))
    assert places(order, np.arange(length))[start:] == places(order, np.arange(start, length))


@given(orders, st.integers(0, 500))
@example(Order([5], fingerprint="f", seed=0), 3)  # a batch of almost five epochs
def test_a_global_batch_is_the_next_positions_in_lane_order(order, samples_seen):
    batch = order.global_batch(samples_seen, 24)
    assert sorted(batch.tolist()) == list(range(samples_seen, samples_seen + 24))
    lanes = batch % order.samples_per_epoch % order.num_lanes
    assert np.all(np.diff(lanes) >= 0)


def test_a_rank_stays_in_its_lanes():
    order = Order([1000] * 64, fingerprint="f", seed=0, num_lanes=64)
    lanes = [set((order.global_batch(64 * step, 64)[:16] % 64).tolist()) for step in range(50)]
    assert set.union(*lanes) == set(range(16))


@settings(max_examples=25)
@given(st.integers(0, 2**63), st.integers(0, 3000))
def test_permutations_are_permutations(seed, size):
    found = permutation(run_key("f", seed), size)
    assert np.array_equal(np.sort(found), np.arange(size))


def test_epochs_seeds_and_datasets_have_orders_of_their_own():
    def order(seed, fingerprint, epoch):
        made = Order([100] * 5, fingerprint=fingerprint, seed=seed)
        return tuple(places(made, np.arange(epoch * 500, (epoch + 1) * 500)))

    # seed 1 epoch 0 is not seed 0 epoch 1, as with seed + epoch
    variants = {order(0, "a", 0), order(1, "a", 0), order(0, "b", 0)}
    assert len(variants) == 3
    later = {tuple(place[1:] for place in order(seed, "a", 1)) for seed in (0, 1)}
    first = {tuple(place[1:] for place in order(seed, "a", 0)) for seed in (0, 1)}
    assert len(later | first) == 4


def test_the_order_is_the_same_for_ever():
    """Numbers of the first release: a change breaks the resume of every run there is."""
    assert splitmix64(np.array([0], np.uint64)).tolist() == [0xE220A8397B1DCDAF]
    assert permutation(run_key("f", 7), 10).tolist() == PERMUTATION
    order = Order([5, 0, 7, 17, 4], fingerprint="f", seed=7, num_lanes=4, window=3)
    assert [place[1:] for place in places(order, np.arange(8))] == FIRST
    assert [place[1:] for place in places(order, np.arange(33, 41))] == SECOND


def test_the_order_mixes_like_independent_draws():
    """Variance of the batch mean over that of independent draws: 1 is perfect, 5.3 webdataset's."""
    shards, per_shard, batch = 500, 400, 256
    order = Order([20] * (shards * per_shard // 20), fingerprint="f", seed=0, num_lanes=256)
    _, chunk, _ = order.locate(np.arange(shards * per_shard))
    label = np.random.default_rng(0).standard_normal(shards)[chunk // (per_shard // 20)]
    means = label[: len(label) // batch * batch].reshape(-1, batch).mean(axis=1)
    ratio = means.var() / (label.var() / batch)
    assert 0.8 < ratio < 1.3


def test_a_small_batch_of_one_chunk_comes_from_the_whole_chunk():
    """Twelve of 128 lanes in stream order would span a tenth of the chunk."""
    order = Order([15_700], fingerprint="f", seed=0)
    _, _, sample = order.locate(np.arange(0, 15_600))
    spans = np.ptp(sample.reshape(-1, 12), axis=1)
    assert np.median(spans) > 15_700 * 0.7


def test_refusals():
    with pytest.raises(ValueError, match="at least one sample"):
        Order([0, 0], fingerprint="f", seed=0)
    with pytest.raises(ValueError, match="num_lanes 0"):
        Order([1], fingerprint="f", seed=0, num_lanes=0)
    with pytest.raises(ValueError, match="chunk 1 holds 2 samples; it has no sample 2"):
        Order([1, 2], fingerprint="f", seed=0).position_of(0, 1, 2)
