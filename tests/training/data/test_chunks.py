"""Chunks from local, in-memory and HTTP stores: equal, verified, retried, bounded."""

import functools
import gc
import http.server
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from training.data import patience
from training.data.blocks import block_parser
from training.data.chunks import ChunkReader, CorruptChunkError
from training.data.shards import load_manifest

SHARDS = [[40, 17, 5], [30, 8, 64, 9]]


@pytest.fixture
def dataset(tmp_path, write_dataset):
    return (str(tmp_path), *write_dataset(tmp_path, SHARDS))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)


def open_reader(url, **options):
    manifest = load_manifest(url)
    parse = block_parser(manifest.token_dtype)
    return ChunkReader(url, manifest.splits["train"], parse=parse, **options)


def check(reader, streams):
    found = reader.get(range(len(streams)))
    assert len(found) == len(streams)
    for number, (tokens, starts) in enumerate(streams):
        stream = np.zeros((1, len(tokens)), tokens.dtype)
        found[number].copy_to(stream, np.array([0]), np.array([0]))
        assert np.array_equal(stream[0], tokens)
        assert np.array_equal(found[number].document_starts, starts)
    reader.close()


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_local_chunks_are_what_was_written(tmp_path, write_dataset, dtype, workers):
    _, streams = write_dataset(tmp_path, SHARDS, dtype=dtype)
    check(open_reader(str(tmp_path), num_loader_workers=workers), streams)
    check(open_reader(f"file://{tmp_path}"), streams)


def test_chunks_in_memory_store(dataset):
    path, _, streams = dataset
    memory = fsspec.filesystem("memory")
    memory.put(path, "/chunks-test", recursive=True)
    try:
        check(open_reader("memory://chunks-test"), streams)
        with pytest.raises(FileNotFoundError, match="no complete dataset"):
            load_manifest("memory://chunks-test/nothing")
    finally:
        memory.rm("/chunks-test", recursive=True)


def test_chunks_over_http(dataset):
    path, _, streams = dataset
    handler = functools.partial(RangeHandler, directory=path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        pytest.importorskip("aiohttp")
        check(open_reader(url), streams)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's server plus range requests; it fails the first request of every range once."""

    failed: set[str] = set()

    def do_GET(self):
        span = self.headers.get("Range")
        if span is None:
            return super().do_GET()
        if (self.path + span) not in self.failed:
            self.failed.add(self.path + span)
            return self.send_error(503)
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        with Path(self.translate_path(self.path)).open("rb") as file:
            file.seek(first)
            content = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_sizes_are_compared_when_opening(dataset, tmp_path):
    shard = tmp_path / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    message = f"train-000001.tar has {len(content) - 1} bytes, the manifest says {len(content)}"
    with pytest.raises(ValueError, match=message):
        open_reader(str(tmp_path))
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard train-000001.tar of the manifest is missing"):
        open_reader(str(tmp_path))


def test_reading_a_manifest_leaves_garbage_collection_as_it_was(dataset):
    load_manifest(dataset[0])
    assert gc.isenabled()


def test_a_flipped_bit_names_shard_chunk_and_bytes(dataset, tmp_path):
    table = open_reader(str(tmp_path)).table
    flip(tmp_path / "train-000001.tar", int(table.start[3]) + 700)
    reader = open_reader(str(tmp_path))
    reader.get([0, 1, 2])
    where = f"train-000001.tar: chunk 3, bytes {table.start[3]} to {table.stop[3]}: corrupt"
    with pytest.raises(CorruptChunkError, match=where) as caught:
        reader.get([2, 3])
    assert caught.value.chunk == 3


def test_transient_errors_are_tried_again(dataset, tmp_path, monkeypatch):
    reader = open_reader(str(tmp_path), num_loader_workers=1)
    fetch, calls = reader._files.fetch, []

    def flaky(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("connection reset")
        content = fetch(*arguments)
        return content[:-1] if len(calls) == 2 else content

    monkeypatch.setattr(reader._files, "fetch", flaky)
    check(reader, dataset[2])
    assert len(calls) == len(dataset[2]) + 2


def test_a_bad_transfer_is_fetched_again(dataset, tmp_path, monkeypatch):
    reader = open_reader(str(tmp_path), num_loader_workers=1)
    fetch, calls = reader._files.fetch, []

    def garbled(*arguments):
        calls.append(arguments)
        content = fetch(*arguments)
        return b"\0" + content[1:] if len(calls) == 1 else content

    monkeypatch.setattr(reader._files, "fetch", garbled)
    check(reader, dataset[2])


def test_a_dead_store_stops_with_its_own_message(dataset, tmp_path, monkeypatch):
    reader = open_reader(str(tmp_path))
    reader._files.patience.limit_seconds = 0.2
    calls = []

    def dead(*arguments):
        calls.append(arguments)
        raise OSError("no route to host")

    monkeypatch.setattr(reader._files, "fetch", dead)
    with pytest.raises(
        OSError, match=r"train-000000.tar: chunk 0, .* in \d attempts over 0 s: OSError: no route"
    ):
        reader.get([0])
    assert 3 <= len(calls) <= 7  # pauses of 10, 20, 40 and 80 ms, of which half is chance


def test_a_shard_that_vanishes_is_named_at_once(dataset, tmp_path):
    reader = open_reader(str(tmp_path))
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000.tar"):
        reader.get([0])


def test_remote_chunks_stay_within_the_memory_limit(tmp_path, write_dataset, monkeypatch):
    manifest, streams = write_dataset(tmp_path, [[75_000] * 6], samples_per_chunk=1)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/cache-test", recursive=True)
    try:
        reader = open_reader("memory://cache-test", cache_mib=1)  # five chunks of 0.2 MiB
        fetch, calls = reader._files.fetch, []
        monkeypatch.setattr(
            reader._files, "fetch", lambda *where: calls.append(where[1]) or fetch(*where)
        )
        for number in (0, 1, 2, 3, 4, 0, 5, 0, 1):  # 5 pushes out 1, the least recently used
            reader.get([number])
            assert reader._kept_bytes <= 1 << 20
        starts = manifest.splits["train"][0].chunks.start
        assert calls == [starts[n] for n in (0, 1, 2, 3, 4, 5, 1)]
        check(reader, streams)
    finally:
        memory.rm("/cache-test", recursive=True)
