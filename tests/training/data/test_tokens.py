"""Sequences of a split against the streams that were written."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.blocks import block_parser
from training.data.chunks import ChunkReader, CorruptChunkError
from training.data.shards import load_manifest
from training.data.tokens import TokenDataset, sequences_per_chunk

SHARDS = [[40, 17, 5], [30, 8, 64, 9], [3]]


@pytest.fixture(scope="module")
def written(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("dataset")
    return (str(folder), *write_dataset(folder, SHARDS))


def open_dataset(path, sequence_length, **options):
    manifest = load_manifest(path)
    parse = block_parser(manifest.token_dtype)
    reader = ChunkReader(path, manifest.splits["train"], parse=parse)
    settings = {
        "split": "train",
        "fingerprint": manifest.fingerprint,
        "seed": 0,
        **options,
    }
    return TokenDataset(reader, sequence_length=sequence_length, **settings)


def place_in_stream(row, starts, streams):
    """The (chunk, offset) at which a row of random tokens and its document starts lie."""
    found = [
        (number, offset)
        for number, (tokens, documents) in enumerate(streams)
        for offset in range(len(tokens) - len(row) + 1)
        if np.array_equal(tokens[offset : offset + len(row)], row)
        and [d - offset for d in documents if offset <= d < offset + len(row)] == starts.tolist()
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("sequence_length", [2, 3, 7, 16, 30])
def test_an_epoch_cuts_every_chunk_into_adjacent_sequences(written, sequence_length):
    path, _, streams = written
    dataset = open_dataset(path, sequence_length)
    n = len(dataset)
    assert n == sum((len(tokens) - 1) // sequence_length for tokens, _ in streams)
    for epoch in (0, 1, 5):
        rows = dataset.read(np.arange(epoch * n, (epoch + 1) * n))
        assert rows.tokens.shape == (n, sequence_length + 1)
        assert rows.tokens.dtype == np.uint16
        assert rows.weights.all()
        places = [
            place_in_stream(row, starts, streams)
            for row, starts in zip(rows.tokens, rows.document_starts, strict=True)
        ]
        for number, (tokens, _) in enumerate(streams):
            offsets = sorted(offset for chunk, offset in places if chunk == number)
            assert len(offsets) == (len(tokens) - 1) // sequence_length
            assert all(b - a == sequence_length for a, b in zip(offsets, offsets[1:], strict=False))


def test_cuts_move_from_epoch_to_epoch(written):
    path, _, streams = written
    dataset = open_dataset(path, 16)
    phases = set()
    for epoch in range(40):
        rows = dataset.read(np.arange(epoch * len(dataset), (epoch + 1) * len(dataset)))
        places = map(place_in_stream, rows.tokens, rows.document_starts, [streams] * len(rows))
        phases.add(min(offset for chunk, offset in places if chunk == 0))
    slack = (len(streams[0][0]) - 1) % 16
    assert phases == set(range(slack + 1))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_any_read_equals_single_reads(written, positions):
    dataset = open_dataset(written[0], 5, num_lanes=7, window=3)
    together = dataset.read(np.array(positions))
    for row, position in enumerate(positions):
        alone = dataset.read(np.array([position]))
        assert np.array_equal(together.tokens[row], alone.tokens[0])
        assert np.array_equal(together.document_starts[row], alone.document_starts[0])
    assert together.positions.tolist() == positions
    assert len(together) == len(together.document_starts) == len(positions)


def test_file_order_reads_the_split_from_its_start(written):
    path, _, streams = written
    dataset = open_dataset(path, 7, seed=9)
    rows = dataset.read_in_file_order(np.arange(len(dataset)))
    expected = [
        tokens[7 * i : 7 * i + 8] for tokens, _ in streams for i in range((len(tokens) - 1) // 7)
    ]
    assert np.array_equal(rows.tokens, expected)


def test_the_count_follows_from_the_chunk_table():
    found = sequences_per_chunk(np.array([0, 1, 3, 4, 9, 10, 12]), 3)
    assert found.tolist() == [0, 0, 0, 1, 2, 3, 3]


def test_a_split_shorter_than_a_sequence_is_refused(written):
    message = r"no sequence of 200 \+ 1 tokens fits; its 5 chunks hold at most 73 tokens each"
    with pytest.raises(ValueError, match=message):
        open_dataset(written[0], 200)


@pytest.fixture
def damaged(tmp_path, write_dataset):
    """Eight chunks of which 2, 3 and 7 are corrupt."""
    manifest, streams = write_dataset(tmp_path, [[30] * 8], samples_per_chunk=1)
    table = manifest.splits["train"][0].chunks
    content = bytearray((tmp_path / "train-000000.tar").read_bytes())
    for chunk in (2, 3, 7):
        content[table.start[chunk] + 800] ^= 255
    (tmp_path / "train-000000.tar").write_bytes(content)
    return str(tmp_path), streams


def test_a_corrupt_chunk_stops_the_run(damaged):
    with pytest.raises(CorruptChunkError, match="train-000000.tar: chunk [237], bytes"):
        dataset = open_dataset(damaged[0], 4)
        dataset.read(np.arange(len(dataset)))


def test_a_corrupt_chunk_is_replaced_by_the_next_good_one(damaged, caplog):
    path, streams = damaged
    dataset = open_dataset(path, 4, corrupt_chunks="replace")
    n = len(dataset)
    with caplog.at_level(logging.WARNING):
        rows = dataset.read(np.arange(n))
    assert dataset.replaced == {2: 4, 3: 4, 7: 0}
    assert "chunk 7" in caplog.text
    assert "chunk 0 come in its place" in caplog.text
    _, asked, index = dataset.order.locate(np.arange(n))
    assert dataset.damage.num_replaced == np.isin(asked, (2, 3, 7)).sum() > 0
    assert dataset.damage.replaced == set()
    assert sorted(dataset.damage.faults) == ["chunk 2", "chunk 3", "chunk 7"]
    assert all("corrupt" in fault for fault in dataset.damage.faults.values())
    for row, starts, chunk in zip(rows.tokens, rows.document_starts, asked, strict=True):
        assert place_in_stream(row, starts, streams)[0] == {2: 4, 3: 4, 7: 0}.get(chunk, chunk)
    for _ in range(2):  # in file order each counts once
        dataset.read_in_file_order(np.arange(n))
    counts = dataset.order.samples_per_chunk
    of_chunk = np.repeat(np.arange(len(counts)), counts)
    assert dataset.damage.replaced == {*np.flatnonzero(np.isin(of_chunk, (2, 3, 7))).tolist()}
    # whatever was read before, the substitutes are the same
    for position in (n - 1, 0, *np.flatnonzero(asked == 2).tolist()):
        again = open_dataset(path, 4, corrupt_chunks="replace").read(np.array([position]))
        assert np.array_equal(again.tokens[0], rows.tokens[position])


def test_nothing_replaces_the_only_chunk(tmp_path, write_dataset):
    write_dataset(tmp_path, [[30]])
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"NUMPY", b"NUMPI"))
    with pytest.raises(CorruptChunkError, match="corrupt"):
        open_dataset(str(tmp_path), 4, corrupt_chunks="replace").read(np.arange(2))


def test_origins_of_positions(written):
    """By shard, the keys of the blocks that a batch touches: as its chunks and offsets say."""
    path, _, streams = written
    dataset = open_dataset(path, 7)
    positions = np.arange(len(dataset), 2 * len(dataset))  # the second epoch, with its phases
    batch = dataset.read(positions)
    lengths = [[40, 17], [5], [30, 8], [64, 9], [3]]  # of blocks, by chunk
    whole = {}
    firsts = [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0)]  # shard and block with which each begins
    for row, starts, position in zip(batch.tokens, batch.document_starts, positions, strict=True):
        chunk, offset = place_in_stream(row, starts, streams)
        stops = np.cumsum(lengths[chunk])
        low, high = np.searchsorted(stops, [offset, offset + 7], side="right")
        shard, block = firsts[chunk]
        keys = [f"train-{shard:06d}-{block + n:06d}" for n in range(low, high + 1)]
        expected = {f"train-{shard:06d}.tar": dict.fromkeys(keys, [])}
        assert dataset.origins(np.array([position])) == expected
        for name in expected:
            whole.setdefault(name, {}).update(expected[name])
    assert dataset.origins(positions) == whole
