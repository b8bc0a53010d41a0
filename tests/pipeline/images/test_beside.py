"""A rerun sees that a caption file, or an image that a table lists, has changed."""

import json
import os
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import load
from pipeline.config import PipelineConfig
from pipeline.corpus import plan_portions
from pipeline.fingerprints import portion_fingerprints, request_fingerprint
from pipeline.portions import place
from pipeline.split import SplitConfig

PLACEMENT = place(SplitConfig(), shuffle_seed=0, partition_bits=12)


def fingerprints(path, *overrides):
    """Of the whole build, then of each portion."""
    fixed = ["dataset_dir=d", f"corpus.path=[{path}]"]
    config = load(PipelineConfig, None, [*fixed, *overrides])
    portions = plan_portions(config.corpus.module, config.corpus.config)
    parts = portion_fingerprints(config, portions, PLACEMENT, "")
    return [request_fingerprint(config, portions), *parts.values()]


def rewrite(path, content):
    """Other content of the same size, at another time."""
    before = path.stat().st_mtime_ns
    assert len(content) == path.stat().st_size
    path.write_bytes(content)
    os.utime(path, ns=(before + 1, before + 1))


def captions_beside(folder):
    (folder / "a.jpg").write_bytes(b"image")
    (folder / "a.txt").write_bytes(b"one")
    return folder / "a.txt", ["corpus.format=image_folder", "corpus.caption_extension=.txt"]


def listed(write):
    def make(folder):
        (folder / "a.jpg").write_bytes(b"image a")
        (folder / "b.jpg").write_bytes(b"image b")
        write(folder)
        return folder / "b.jpg", ["corpus.format=image_table"]

    return make


def parquet_of(columns):
    return lambda folder: pq.write_table(pa.table({"image": columns}), folder / "t.parquet")


NAMES = ["a.jpg", None, "b.jpg"]
STRUCTS = [{"path": name, "bytes": None} for name in NAMES]


@pytest.mark.parametrize(
    "make",
    [
        captions_beside,
        listed(lambda folder: (folder / "t.csv").write_text("image\na.jpg\nb.jpg\n")),
        listed(lambda folder: (folder / "t.jsonl").write_text('{"image":"b.jpg"}\n{bad\n')),
        listed(parquet_of(NAMES)),
        listed(parquet_of(STRUCTS)),
    ],
)
def test_a_changed_file_changes_the_fingerprints(tmp_path, make):
    changed, asked = make(tmp_path)
    first = fingerprints(tmp_path, *asked)
    assert fingerprints(tmp_path, *asked) == first
    rewrite(changed, changed.read_bytes()[::-1])
    second = fingerprints(tmp_path, *asked)
    changed.unlink()
    gone = fingerprints(tmp_path, *asked, "max_bad_fraction=1") if "table" in asked[0] else None
    for one, two in zip(first, second, strict=True):
        assert one != two
    assert gone is None or set(gone).isdisjoint(first)


def test_only_the_portion_of_the_changed_file_is_read_again(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(bytes(3 << 20))
        (tmp_path / f"{number}.txt").write_text(str(number))
    asked = ["corpus.format=image_folder", "corpus.caption_extension=.txt"]
    first = fingerprints(tmp_path, *asked)
    rewrite(tmp_path / "3.txt", b"x")
    second = fingerprints(tmp_path, *asked)
    assert [one == two for one, two in zip(first, second, strict=True)].count(False) == 2


def test_what_is_not_asked_for_does_not_count(tmp_path):
    """Captions where none are wished, and tables that hold their images themselves."""
    changed, asked = captions_beside(tmp_path)
    without = [asked[0]]
    plain = fingerprints(tmp_path, *without)
    rewrite(changed, b"two")
    assert fingerprints(tmp_path, *without) == plain
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"image"], "text": ["a.jpg"]}), table)
    held = fingerprints(table, "corpus.format=image_table")
    rewrite(tmp_path / "a.jpg", b"egami")
    assert fingerprints(table, "corpus.format=image_table") == held


def test_an_archive_of_listed_images(tmp_path):
    """Members of equal size and of no time: the archive itself has changed."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.jpg"}))
    asked = ["corpus.format=image_table", f"corpus.image_root='tar://::{tmp_path / 'i.tar'}'"]
    found = []
    for time, content in enumerate((b"one", b"two"), 1):
        (tmp_path / "a.jpg").write_bytes(content)
        with tarfile.open(tmp_path / "i.tar", "w") as tar:
            entry = tarfile.TarInfo("a.jpg")
            entry.size = len(content)
            with (tmp_path / "a.jpg").open("rb") as file:
                tar.addfile(entry, file)
        os.utime(tmp_path / "i.tar", ns=(time, time))
        found.append(fingerprints(tmp_path / "t.jsonl", *asked))
    assert set(found[0]).isdisjoint(found[1])


def test_a_store_is_asked_for_whole_folders(monkeypatch):
    store = fsspec.filesystem("memory")
    for number in range(5):
        store.pipe(f"/corpus/{number}.jpg", b"image")
        store.pipe(f"/corpus/{number}.txt", b"text")
    asked = ["corpus.format=image_folder", "corpus.caption_extension=.txt"]
    listings = []
    whole = type(store).ls
    monkeypatch.setattr(
        type(store), "ls", lambda *args, **kw: listings.append(args[1]) or whole(*args, **kw)
    )
    try:
        first = fingerprints("memory://corpus", *asked)
        times = len(listings)
        store.pipe("/corpus/3.txt", b"longer")
        assert set(first).isdisjoint(fingerprints("memory://corpus", *asked))
    finally:
        store.rm("/corpus", recursive=True)
    assert listings[times:].count("/corpus") <= 3  # by the look for files, too
