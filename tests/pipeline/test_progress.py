import gzip
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from pipeline.corpus import CorpusFile, Portion, plan_portions
from pipeline.progress import STORE_SECONDS, ProgressDisplay, _CountBatch, _duration
from pipeline.readers import jsonl
from pipeline.records import read_batch
from pipeline.shared_work import place_of
from pipeline.store import Store
from pipeline.work import WorkFolder, write_json


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(str(tmp_path / ".work"))
    folder.create()
    return folder


def portions(size):
    file = CorpusFile(url="/a", source="a", bytes=size, version="")
    return [Portion(0, file, 0, size, size)]


def test_counters_of_all_workers_add_up(work):
    display = ProgressDisplay(work, portions(8_000_000), "reading")
    (work.progress / "1.json").write_text("[1000, 1500000, 2]")
    (work.progress / "2.json").write_text("[500, 500000, 1]")
    (work.progress / "3.json").write_text("[500, 50")  # caught while it was written
    display.started -= 2
    line = display.line()
    assert line.startswith("reading: 1,500 records, 2 of 8 MB, 3 rejects, 1.0 MB/s, 0:06 left")
    display.started -= 8  # all is read, and the tokenizer is trained
    assert display.line() == "reading: 1,500 records, 2 of 8 MB, 3 rejects, 1.0 MB/s"


def test_a_compressed_corpus_is_counted_as_it_is_stored(work, tmp_path):
    """200 KB of text in less than 2 KB: half of the batches read half of the corpus."""
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % 10**99 for _ in range(2000)))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(packed)
    config = jsonl.Config(path=(str(tmp_path),))
    portions = plan_portions(jsonl, config)
    display = ProgressDisplay(work, portions, "reading")
    display.total_bytes *= 10**6  # to be seen in a line of MB
    count = _CountBatch(work)
    count.setup()
    for done, portion in enumerate(portions, 1):
        for batch in jsonl.read(portion, config):
            assert list(count.process(replace(batch, read_bytes=batch.read_bytes * 10**6)))
        shown = f"{done * 2000:,} records, {done * len(packed):,} of {2 * len(packed):,} MB"
        assert shown in display.line()
    display.started -= 10
    (work.progress / "other.json").write_text(f"[0, {-len(packed) * 10**6}, 0]")
    assert display.line().endswith("0:10 left")


def test_before_the_first_batch(work):
    assert ProgressDisplay(work, [], "reading").line().endswith("0 rejects, 0.0 MB/s")


def test_a_shard_that_grows_is_seen(work):
    display = ProgressDisplay(work, [], "reading")
    assert display.line().endswith("0.0 MB/s")
    growing = work.shards / ".train-000001.tar.0a1b"
    growing.write_bytes(bytes(2_000_000))
    assert display.line().endswith("0.0 MB/s, 0 shards written, 2 MB")
    with growing.open("ab") as file:
        file.write(bytes(1_000_000))
    for name in ("train-000000.tar", "train-000000.tar.idx", "train-000000.json"):
        (work.shards / name).write_bytes(bytes(4_000_000))
    assert display.line().endswith("0.0 MB/s, 1 shards written, 11 MB")


def test_plain_lines_without_a_terminal(work, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("pipeline.progress.Console", lambda **_: Console(file=out, width=200))
    monkeypatch.setattr("pipeline.progress.PLAIN_SECONDS", 0.01)
    with ProgressDisplay(work, portions(8), "reading") as display:
        display.done.wait(0.2)
    assert out.getvalue().splitlines()[0] == "reading: 0 records, 0 of 0 MB, 0 rejects, 0.0 MB/s"


def test_one_live_line_on_a_terminal(work, monkeypatch):
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=200, highlight=False)
    monkeypatch.setattr("pipeline.progress.Console", lambda **_: terminal)
    monkeypatch.setattr("pipeline.progress.LIVE_SECONDS", 0.01)
    with ProgressDisplay(work, portions(8), "reading") as display:
        display.done.wait(0.2)
    assert "reading: 0 records" in out.getvalue()
    assert out.getvalue().count("\n") == 1  # at the end, where the line is wiped


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00"), (36_061, "10:01:01")]
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.usefixtures("memory_store")
def test_counters_come_through_a_store_where_machines_share_no_folder(work, tmp_path, monkeypatch):
    far = replace(work, store="memory://b/d", request="r" * 64).between_machines()
    portion = portions(8_000_000)[0]
    batches = [batch(portion, read_bytes=2_000_000), batch(portion, read_bytes=1_000_000)]
    display = ProgressDisplay(far, [portion], "reading")
    count = _CountBatch(replace(far, path=str(tmp_path / "elsewhere")))
    count.setup()
    assert list(count.process(batches[0])) == batches[:1]
    display.started -= 2
    line = display.line()
    assert line.startswith("reading: 3 records, 2 of 8 MB, 0 rejects, 1.0 MB/s, 0:06 left")
    assert list(count.process(batches[1])) == batches[1:]
    assert "2 of 8 MB" in display.line()  # asked and told once in ten seconds
    for moment in (count, display):
        name = "written" if moment is count else "asked"
        setattr(moment, name, getattr(moment, name) - STORE_SECONDS)
    assert list(count.process(batches[1])) == batches[1:]
    write_json(work.root / "row", {})
    Store.open(place_of(far, far.shards)).send("train-000000.json", work.root / "row")
    assert "9 records, 4 of 8 MB" in display.line()
    assert display.line().endswith(", 1 shards in the store")
    with ProgressDisplay(far, [portion], "reading") as fresh:
        assert "0 records" in fresh.line()
    monkeypatch.setattr("pipeline.store.Store.send_bytes", fail)
    count.written -= STORE_SECONDS
    assert list(count.process(batches[0])) == batches[:1]


def fail(*_):
    raise OSError("no store")


def batch(portion, *, read_bytes):
    texts = pa.array([b"a", b"b", b"c"], pa.large_binary())
    positions = np.arange(3, dtype=np.int64)
    made = read_batch(portion, positions=positions, texts=texts, bad=(), read_bytes=read_bytes)
    return replace(made, last=True)
