"""The loader: the same global batches however they are made, and no thread left behind."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.blocks import block_parser
from training.data.chunks import ChunkReader
from training.data.loader import EvaluationBatches, Loader
from training.data.order import Order
from training.data.shards import load_manifest
from training.data.tokens import TokenDataset

WORLD_SIZES = [1, 2, 3, 4, 6, 8, 12, 24]


@pytest.fixture(scope="module")
def path(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, [[90, 70, 50], [120, 33]])
    return str(folder)


def open_dataset(path, workers=2, num_lanes=16):
    manifest = load_manifest(path)
    reader = ChunkReader(
        path,
        manifest.splits["train"],
        parse=block_parser(manifest.token_dtype),
        num_loader_workers=workers,
    )
    return TokenDataset(
        reader,
        split="train",
        sequence_length=4,
        fingerprint=manifest.fingerprint,
        seed=5,
        num_lanes=num_lanes,
        window=3,
    )


def collate_sequences(rows):
    return {
        "tokens": rows.tokens,
        "document_starts": rows.document_starts,
        "positions": rows.positions,
        "weights": rows.weights,
    }


def collate_numbers(numbers):
    return {"numbers": numbers}


def make(dataset, *, samples_seen=0, rank=0, world_size=1, micro=1, ahead=2, collate=None):
    return Loader(
        dataset,
        collate=collate or collate_sequences,
        samples_seen=samples_seen,
        global_batch_size=24,
        micro_batch_size=micro,
        rank=rank,
        world_size=world_size,
        num_batches_ahead=ahead,
    )


def global_batches(path, num_steps, *, world_size=1, micro=1, ahead=2, workers=2, samples_seen=0):
    """The rows of each step, all ranks one below the other, with their document starts."""
    steps = [[] for _ in range(num_steps)]
    for rank in range(world_size):
        with make(
            open_dataset(path, workers),
            samples_seen=samples_seen,
            rank=rank,
            world_size=world_size,
            micro=micro,
            ahead=ahead,
        ) as loader:
            for step in steps:
                batches = next(loader)
                sizes = [len(batch["tokens"]) for batch in batches]
                assert sizes == [micro] * (24 // world_size // micro)
                for batch in batches:
                    starts = [tuple(row.tolist()) for row in batch["document_starts"]]
                    rows = [tuple(row) for row in batch["tokens"].tolist()]
                    step += zip(batch["positions"].tolist(), rows, starts, strict=True)
    return steps


@pytest.fixture(scope="module")
def expected(path):
    dataset = open_dataset(path)
    steps = []
    for step in range(12):  # three epochs of 89 sequences
        rows = dataset.read(dataset.order.global_batch(24 * step, 24))
        starts = [tuple(row.tolist()) for row in rows.document_starts]
        tokens = map(tuple, rows.tokens.tolist())
        steps.append(list(zip(rows.positions.tolist(), tokens, starts, strict=True)))
    return steps


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(WORLD_SIZES).flatmap(
        lambda world: st.tuples(
            st.just(world),
            st.sampled_from([n for n in range(1, 25) if 24 // world % n == 0]),
        )
    ),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 8),
)
def test_global_batches_do_not_depend_on_ranks_or_threads(
    path, expected, world_and_micro, workers, ahead, first_step
):
    world_size, micro = world_and_micro
    found = global_batches(
        path,
        4,
        world_size=world_size,
        micro=micro,
        ahead=ahead,
        workers=workers,
        samples_seen=24 * first_step,
    )
    assert found == expected[first_step : first_step + 4]


def test_every_sequence_comes_once_per_epoch(path, expected):
    positions = sorted(position for step in expected for position, _, _ in step)
    assert positions == list(range(12 * 24))
    places = open_dataset(path).order.locate(np.arange(89))
    assert len(set(zip(*(column.tolist() for column in places), strict=True))) == 89


def test_a_resume_at_any_sample_continues_the_stream(path, expected):
    stream = sorted(row for step in expected for row in step)
    for samples_seen in (0, 1, 23, 24, 88, 89, 90, 100):
        (found,) = global_batches(path, 1, samples_seen=samples_seen)
        assert sorted(found) == stream[samples_seen : samples_seen + 24]


def test_only_consumed_samples_count(path):
    with make(open_dataset(path), ahead=5, samples_seen=48) as loader:
        assert loader.samples_seen == 48
        next(loader)
        next(loader)
        assert loader.samples_seen == 96


class Source:
    """A dataset of numbers that notes its reads."""

    def __init__(self, fail_at=None, rows_at_once=100):
        self.order = Order([1000], fingerprint="f", seed=0)
        self.rows_at_once, self.rows_ahead = rows_at_once, 0
        self.fail_at = fail_at
        self.reads = []

    def read(self, positions):
        if self.fail_at is not None and positions.max() >= self.fail_at:
            raise OSError("shard train-000007.tar is gone")
        self.reads.append(len(positions))
        return positions


def test_small_steps_are_read_together_after_a_quick_first_one():
    source = Source()
    with make(source, collate=collate_numbers) as loader:
        for step in range(12):
            found = np.concatenate([batch["numbers"] for batch in next(loader)])
            assert sorted(found.tolist()) == list(range(24 * step, 24 * step + 24))
    assert source.reads[:4] == [24, 48, 96, 96]


def test_the_thread_stays_few_batches_ahead():
    made = []
    with make(
        Source(rows_at_once=1),
        ahead=3,
        collate=lambda rows: made.append(rows) or collate_numbers(rows),
    ) as loader:
        next(loader)
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == 5  # one taken, three ready, one in hand


def test_an_error_comes_behind_the_good_batches_with_its_own_message():
    loader = make(Source(fail_at=50, rows_at_once=24), collate=collate_numbers)
    next(loader)
    next(loader)
    for _ in range(2):
        with pytest.raises(OSError, match=r"shard train-000007.tar is gone"):
            next(loader)
    loader.close()
    assert not loader._thread.is_alive()


def test_waiting_is_measured():
    with make(
        Source(rows_at_once=1), collate=lambda rows: time.sleep(0.02) or collate_numbers(rows)
    ) as loader:
        for _ in range(5):
            next(loader)
        waited = loader.wait_seconds
        assert waited >= 0.02  # at least for the first
        time.sleep(0.2)
        next(loader)
        assert loader.wait_seconds - waited < 0.2  # what lies ready costs no wait


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "millrace-loader"]


def test_closing_ends_thread_and_iteration():
    before = len(threads())
    loader = make(Source(), collate=collate_numbers)
    next(loader)
    loader.close()
    loader.close()
    assert list(loader) == []
    assert len(threads()) == before


def test_a_forgotten_loader_ends_its_thread():
    before = len(threads())
    loader = make(Source(), collate=collate_numbers)
    next(loader)
    del loader
    gc.collect()
    assert len(threads()) == before


@pytest.mark.slow
def test_a_failed_run_exits_at_once(path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import numpy as np\n"
        "from training.data.loader import Loader\n"
        "from training.data.order import Order\n"
        "class Source:\n"
        "    order, rows_at_once, rows_ahead = Order([9], fingerprint='f', seed=0), 1, 0\n"
        "    def read(self, positions): return {'x': positions}\n"
        "loader = Loader(Source(), collate=dict, samples_seen=0, global_batch_size=1,\n"
        "    micro_batch_size=1, rank=0, world_size=1)\n"
        "next(loader)\n"
        "raise ValueError('the run failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sys.path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("ValueError: the run failed")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("max_samples", [0, 10, 1000])
def test_evaluation_counts_every_sample_once_on_any_number_of_ranks(path, world_size, max_samples):
    dataset = open_dataset(path)
    ranks = [
        EvaluationBatches(
            dataset,
            collate=collate_sequences,
            micro_batch_size=4,
            rank=rank,
            world_size=world_size,
            max_samples=max_samples,
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for row in batches]
    assert all(len(row["tokens"]) == 4 for row in rows)
    counted = np.concatenate([row["tokens"][row["weights"]] for row in rows]).tolist()
    num = 10 if max_samples == 10 else 89
    assert sorted(counted) == sorted(dataset.read_in_file_order(np.arange(num)).tokens.tolist())


def test_evaluation_batches_are_a_sequence(path):
    batches = EvaluationBatches(
        open_dataset(path), collate=collate_sequences, micro_batch_size=40, rank=0, world_size=1
    )
    assert [batch["weights"].sum() for batch in batches] == [40, 40, 9]
    assert np.array_equal(batches[-1]["tokens"], batches[2]["tokens"])
    assert [len(batch["tokens"]) for batch in batches[:2]] == [40, 40]
    with pytest.raises(IndexError, match="3 micro batches, asked for 3"):
        batches[3]
