"""Chunks from an S3 server that fails: the same bytes, patience with an end, reads ahead."""

import os
import re
import threading
import time

import numpy as np
import pytest

from tests.s3_server import S3Server
from training.data import patience
from training.data.blocks import block_parser
from training.data.chunks import ChunkReader, CorruptChunkError
from training.data.loader import Loader
from training.data.patience import Patience
from training.data.shards import load_manifest
from training.data.store import StoreConfig
from training.data.tokens import TokenDataset
from training.data.traffic import Traffic

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
SHARDS = [[400, 170, 500], [300, 80, 640, 900]]
URL = "s3://bucket/sets/first"


@pytest.fixture
def store(tmp_path, write_dataset, monkeypatch):
    """A server with a dataset, and this process as one that works with it."""
    folder = tmp_path / "buckets/bucket/sets/first"
    folder.mkdir(parents=True)
    write_dataset(folder, SHARDS, samples_per_chunk=1)
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.02)
    with S3Server(tmp_path / "buckets") as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def open_reader(store, url=URL, *, cache_mib=64, **options):
    manifest = load_manifest(url)
    parse = block_parser(manifest.token_dtype)
    config = StoreConfig(**options)
    shards = manifest.splits["train"]
    return ChunkReader(url, shards, parse=parse, cache_mib=cache_mib, store=config)


def words_of(reader, chunks=range(7)):
    return {number: blocks.words.tobytes() for number, blocks in reader.get(list(chunks)).items()}


@pytest.fixture
def expected(store):
    return words_of(open_reader(store, str(store.folder / "bucket/sets/first")))


def test_a_chunk_is_one_range_request(store, expected):
    reader = open_reader(store)
    assert words_of(reader) == expected
    assert words_of(reader) == expected
    assert sorted(store.chunk_reads().values()) == [1] * 7
    assert reader.traffic == Traffic(num_chunks=7, num_bytes=sum(map(len, expected.values())))


KINDS = ["500", "503", "429", "drop", "truncate", "corrupt"]


@pytest.mark.parametrize("kind", KINDS)
def test_faults_are_asked_again(store, expected, kind, caplog):
    reader = open_reader(store)
    store.fail(*[kind] * (12 if kind == "drop" else 2))  # aiohttp makes good for some drops
    assert words_of(reader) == expected
    assert reader.traffic.num_retries == 2 or (kind == "drop" and reader.traffic.num_retries > 0)
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if line.startswith("warning: ")]) == (kind != "corrupt")


def test_an_answer_that_does_not_come_is_asked_again(store, expected):
    reader = open_reader(store, request_seconds=1.0)
    store.fail("hang")
    started = time.monotonic()
    assert words_of(reader) == expected
    assert reader.traffic.num_retries == 1
    assert time.monotonic() - started < 5


def test_faults_at_the_start_are_asked_again(store, expected):
    store.fail("503", "500", "drop", path="manifest.json")
    store.fail("503", "truncate", path="/bucket$")
    assert words_of(open_reader(store)) == expected


def test_a_store_that_stays_down_ends_the_run_with_its_object_and_cause(store):
    reader = open_reader(store, retry_seconds=0.3)
    store.is_down = True
    told = r"s3://bucket/sets/first/train-000000.tar: chunk 0, bytes 0 to \d+: not readable in \d+"
    started = time.monotonic()
    with pytest.raises(OSError, match=told + r" attempts over \d s: \w+Error: ") as raised:
        reader.get([0])
    spent = int(re.search(r"over (\d+) s", str(raised.value))[1])
    assert spent <= round(time.monotonic() - started)  # of a busy machine, too
    store.is_down = False
    assert 0 in reader.get([0])  # who asks later gets it


def test_bytes_that_stay_wrong_are_a_corrupt_chunk(store):
    reader = open_reader(store)
    store.fail(*["corrupt"] * 3)
    with pytest.raises(CorruptChunkError, match=r"train-000000.tar: chunk 0, .* corrupt, crc32"):
        reader.get([0])
    assert store.faults == []


def test_an_object_that_vanishes_is_told_at_once(store):
    reader = open_reader(store)
    (store.folder / "bucket/sets/first/train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"chunk 0, .*: no such file .* \(The NoSuchKey"):
        reader.get([0])
    assert reader.traffic.num_retries == 0


def test_refusals_are_told_at_once(store):
    reader = open_reader(store)
    store.fail("403")
    with pytest.raises(OSError, match=r"train-000000.tar: chunk 0, .*: PermissionError: "):
        reader.get([0])
    assert reader.traffic.num_retries == 0


def test_an_incident_is_told_once_and_its_end(store, caplog):
    calls = []

    def attempt():
        calls.append(time.monotonic())
        if len(calls) < 5:
            raise OSError("slow down, http://me:hush@host/a?signature=hush")
        return "answer"

    traffic = Traffic()
    assert Patience(30, traffic).read(attempt, what="s3://a/b") == "answer"
    first, last = [record.getMessage() for record in caplog.records]
    assert first == (
        "warning: s3://a/b: OSError: slow down, http://me:***@host/a?***; asked again, for 30 s at "
        "most"
    )
    assert last.startswith("s3://a/b: read 0.")
    assert traffic.num_retries == 4
    pauses = np.diff(calls)
    for pause, most in zip(pauses, (0.02, 0.04, 0.08, 0.16), strict=True):
        assert most / 2 <= pause < most + 0.1


def test_closing_ends_a_pause():
    slow = Patience(1e6)
    threading.Timer(0.2, slow.close).start()

    def attempt():
        raise OSError("down")

    slow._last_failure = time.monotonic()
    with pytest.raises(OSError, match="not readable when the run ended: OSError: down"):
        slow.read(attempt, what="a")


def open_dataset(reader):
    return TokenDataset(
        reader, split="train", sequence_length=8, fingerprint="f", seed=0, num_lanes=2, window=8
    )


def test_chunks_are_fetched_before_they_are_asked_for(store):
    """While the first batch is in use, its followers come; never more than memory is there for."""
    reader = open_reader(store)
    dataset = open_dataset(reader)
    first = dataset.order.global_batch(0, 2)
    dataset.read(first)
    used = len(store.chunk_reads())
    dataset.expect(np.arange(2, len(dataset)))
    while sum(store.chunk_reads().values()) < 7:
        time.sleep(0.01)
    store.is_down = True
    dataset.read(np.arange(len(dataset)))
    assert used <= 2
    assert sorted(store.chunk_reads().values()) == [1] * 7


def test_reading_ahead_stays_within_memory(store):
    reader = open_reader(store)
    sizes = reader.table.stop - reader.table.start
    reader.spare_bytes = int(sizes[0] + sizes[1])
    reader.expect(range(7))
    reader.expect(range(7))
    time.sleep(0.5)
    assert len(store.chunk_reads()) == 2


@pytest.mark.parametrize("ahead", [True, False])
def test_the_loader_reads_ahead(store, monkeypatch, ahead):
    """With 100 ms a request and 20 ms a step, no step behind the first waits for the store."""
    reader = open_reader(store)
    dataset = open_dataset(reader)
    if not ahead:
        monkeypatch.setattr(TokenDataset, "rows_ahead", 0)
    store.latency = 0.1
    with Loader(
        dataset,
        collate=lambda rows: {"tokens": rows.tokens},
        samples_seen=0,
        global_batch_size=2,
        micro_batch_size=2,
        rank=0,
        world_size=1,
        num_batches_ahead=1,
    ) as loader:
        next(loader)
        waited = loader.wait_seconds
        for _ in range(100):
            time.sleep(0.02)
            next(loader)
        assert (loader.wait_seconds - waited < 0.1) == ahead
    assert sorted(store.chunk_reads().values()) == [1] * 7


def test_a_failure_ahead_is_told_to_who_asks(store):
    reader = open_reader(store, retry_seconds=0.1)
    store.is_down = True
    reader.expect([0])
    time.sleep(0.5)
    with pytest.raises(OSError, match="chunk 0, .* not readable"):
        reader.get([0])


def test_a_closed_reader_hangs_nobody(store):
    reader = open_reader(store, num_requests=1)
    reader.close()
    with pytest.raises(OSError, match="closed while it was read"):
        reader.get([0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_requests", 0), ("request_seconds", 0.0), ("retry_seconds", -1.0)),
        *(("cache_gib", 0.0), ("cache_gib", float("nan"))),
    ],
)
def test_fields_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* found {value}"):
        StoreConfig(**{field: value})
