"""The cache of a node: once per chunk, below its limit, whole through kills and damage."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.training.data.cache_worker import CHUNK_BYTES, NUM_CHUNKS, chunk
from training.data import chunk_cache
from training.data.chunk_cache import OWN_BYTES, ChunkCache
from training.data.traffic import Traffic

ROOT = Path(__file__).parents[3]
SIZE = 1000


def content_of(name):
    return name.encode() * (SIZE // len(name))


def get(cache, name, fetched):
    def fetch():
        fetched.append(name)
        return content_of(name)

    return cache.get(name, fetch, is_good=lambda content: content == content_of(name))


def taken(folder):
    """Bytes of all files at one moment: nobody may begin, rename or remove one meanwhile."""
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sum(entry.stat().st_size for entry in os.scandir(folder))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def test_a_chunk_is_fetched_once_and_kept_for_others(tmp_path):
    fetched, traffic = [], Traffic()
    for cache in (ChunkCache(tmp_path, 10**6), ChunkCache(tmp_path, 10**6, traffic)):
        for name in ("aaaa", "bbbb", "aaaa"):
            assert get(cache, name, fetched) == content_of(name)
    assert fetched == ["aaaa", "bbbb"]
    assert names(tmp_path) == ["aaaa", "bbbb"]
    assert traffic == Traffic(num_cache_hits=3)


def test_the_least_recently_used_makes_room(tmp_path):
    fetched = []
    cache = ChunkCache(tmp_path, 4 * SIZE + OWN_BYTES)
    for name in ("aaaa", "bbbb", "cccc", "dddd", "aaaa", "eeee"):
        get(cache, name, fetched)
        time.sleep(0.01)  # times of files are those of a clock tick
        assert taken(tmp_path) <= cache.limit_bytes + OWN_BYTES
    assert names(tmp_path) == ["aaaa", "cccc", "dddd", "eeee"]
    assert get(cache, "bbbb", fetched) == content_of("bbbb")
    assert fetched == ["aaaa", "bbbb", "cccc", "dddd", "eeee", "bbbb"]


def test_a_chunk_above_the_limit_is_not_kept(tmp_path):
    cache = ChunkCache(tmp_path, SIZE - 1 + OWN_BYTES)
    assert get(cache, "aaaa", []) == content_of("aaaa")
    assert names(tmp_path) == []


def test_a_lower_limit_holds_at_once(tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for number in range(10):
        get(cache, f"{number:04}", [])
    ChunkCache(tmp_path, 4 * SIZE + OWN_BYTES)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_fetched_again(tmp_path, damage, caplog):
    fetched, traffic = [], Traffic()
    cache = ChunkCache(tmp_path, 10**6, traffic)
    get(cache, "aaaa", fetched)
    content = content_of("aaaa")
    damaged = {"flipped": b"b" + content[1:], "cut": content[:-1], "empty": b""}
    (tmp_path / "aaaa").write_bytes(damaged[damage])
    assert get(cache, "aaaa", fetched) == content
    assert fetched == ["aaaa", "aaaa"]
    assert (tmp_path / "aaaa").read_bytes() == content
    assert traffic.num_cache_faults == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: {tmp_path}/aaaa: damaged; the chunk is fetched again"
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 32, b"what"])
def test_a_damaged_account_is_made_anew(tmp_path, content):
    cache = ChunkCache(tmp_path, 4 * SIZE + OWN_BYTES)
    for name in ("aaaa", "bbbb", "cccc", "dddd"):
        get(cache, name, [])
    (tmp_path / "lock").write_bytes(content)
    get(cache, "eeee", [])
    assert taken(tmp_path) <= 4 * SIZE + OWN_BYTES


def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path, full_disk, caplog, monkeypatch):
    fetched = []
    cache = ChunkCache(tmp_path, 10**6)
    get(cache, "aaaa", fetched)
    monkeypatch.setattr(chunk_cache, "QUIET_SECONDS", 0.0)  # asked again for every chunk
    with full_disk(SIZE // 2):
        for name in ("bbbb", "cccc", "aaaa", "bbbb"):
            assert get(cache, name, fetched) == content_of(name)
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: {tmp_path} cannot be written: File too large; training goes on without new "
        "chunks in it"
    ]
    assert names(tmp_path) == ["aaaa"]
    get(cache, "bbbb", fetched)
    assert names(tmp_path) == ["aaaa", "bbbb"]
    assert fetched == ["aaaa", "bbbb", "cccc", "bbbb", "bbbb"]


def test_a_disk_that_refused_is_left_alone_for_a_while(tmp_path, full_disk):
    cache = ChunkCache(tmp_path, 10**6)
    with full_disk(SIZE // 2):
        get(cache, "aaaa", [])
    get(cache, "bbbb", [])
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written():
    with pytest.raises(ValueError, match="^data.store.cache_dir: /proc/nothing cannot be written:"):
        ChunkCache("/proc/nothing", 10**6)


def test_an_error_of_the_store_leaves_nothing(tmp_path):
    cache = ChunkCache(tmp_path, 10**6)

    def fail():
        raise OSError("the store is down")

    with pytest.raises(OSError, match="the store is down"):
        cache.get("aaaa", fail, is_good=lambda content: True)
    assert names(tmp_path) == []
    assert get(cache, "aaaa", []) == content_of("aaaa")


def start(folder, limit, seed, num_reads, log, *words):
    script = [sys.executable, "-m", "tests.training.data.cache_worker"]
    arguments = map(str, (folder, limit, seed, num_reads, log, *words))
    return subprocess.Popen([*script, *arguments], cwd=ROOT)


def test_processes_fetch_each_chunk_once(tmp_path):
    log = tmp_path / "log"
    workers = [start(tmp_path / "cache", 10**8, seed, 100, log) for seed in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    assert Counter(map(int, log.read_text().split())) == dict.fromkeys(range(NUM_CHUNKS), 1)


def test_processes_stay_below_the_limit_through_kills(tmp_path):
    """A third of the chunks fit; workers are killed at any moment, and others go on."""
    folder, limit = tmp_path / "cache", 8 * CHUNK_BYTES
    most, is_over = [0], threading.Event()

    def watch():
        while not is_over.is_set():
            if (folder / "lock").exists():
                most[0] = max(most[0], taken(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        steady = start(folder, limit, "steady", 400, tmp_path / "log")
        for seed in range(6):
            victim = start(folder, limit, seed, 10**6, tmp_path / "log")
            time.sleep(0.8 + 0.03 * seed)
            victim.kill()
            victim.wait()
        assert steady.wait(timeout=60) == 0
    finally:
        is_over.set()
        watcher.join()
    assert 4 * CHUNK_BYTES < most[0] <= limit
    ChunkCache(folder, limit)
    assert not list(folder.glob("*.part"))
    for path in folder.glob("chunk*"):
        assert path.read_bytes() == chunk(int(path.name[5:]))
    assert int((folder / "lock").read_bytes()) == taken(folder) - (folder / "lock").stat().st_size


def test_a_kill_while_a_chunk_is_fetched_locks_nobody_out(tmp_path):
    log = tmp_path / "log"
    victim = start(tmp_path / "cache", 10**8, 0, 1, log, "hang")
    while not log.exists() or not log.read_text():
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    number = int(log.read_text().split()[0])
    cache = ChunkCache(tmp_path / "cache", 10**8)
    name = f"chunk{number:03}"
    assert cache.get(name, lambda: chunk(number), is_good=lambda content: True) == chunk(number)
    assert names(tmp_path / "cache") == [name]
