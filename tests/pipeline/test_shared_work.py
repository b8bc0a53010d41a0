"""The work folder of machines that share no folder: what one leaves in a store, others find."""

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import shared_work
from pipeline.exclude import EXCLUDED, write_table
from pipeline.shared_work import (
    Files,
    at_hand,
    bring,
    drop,
    excluded_at,
    give,
    lies_in,
    place_of,
    read_lines,
    read_place,
)
from pipeline.work import WorkFolder, read_json, write_atomic, write_json

pytestmark = pytest.mark.usefixtures("memory_store")

REQUEST = "abcdef0123456789ff"
SHARED = "memory://bucket/web/.work/abcdef0123456789"


@pytest.fixture(params=["folder", "store"])
def work(request, tmp_path):
    """One that all machines see, and one of an engine's build into a store."""
    folder = WorkFolder(str(tmp_path / ".work"), store="memory://bucket/web", request=REQUEST)
    folder.create()
    return folder.between_machines() if request.param == "store" else folder


@pytest.fixture
def far(tmp_path):
    folder = WorkFolder(str(tmp_path / ".work"), store="memory://bucket/web", request=REQUEST)
    folder.create()
    return folder.between_machines()


def stored():
    fs = fsspec.filesystem("memory")
    root = SHARED.removeprefix("memory:/")
    return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}


def test_what_one_machine_writes_another_finds(work):
    with at_hand(work) as here:
        write_json(here.portion(3), {"portion": 3})
        write_atomic(here.rejects / "read.gz", b"rejects")
    with at_hand(work, work.portions, work.leaks) as there:
        assert read_json(there.portion(3)) == {"portion": 3}
        assert read_json(there.leaks) is None
        assert [path.name for path in there.portions.iterdir()] == ["000003.json"]
        write_json(there.leaks, {"plan": "p"})
    with at_hand(work, work.leaks) as there:
        assert read_json(there.leaks) == {"plan": "p"}
    assert lies_in(work, work.portion(3))
    assert not lies_in(work, work.portion(4))
    bring(work, work.portions, work.rejects, work.leaks)
    assert read_json(work.portion(3)) == {"portion": 3}
    assert (work.rejects / "read.gz").read_bytes() == b"rejects"
    drop(work, work.portion(3))
    bring(work, work.portions)
    assert not list(work.portions.iterdir())
    assert not lies_in(work, work.portion(3))


def test_nothing_of_another_machine_is_there_unasked(far):
    with at_hand(far) as here:
        write_json(here.portion(1), 1)
        write_json(here.leaks, 2)
    with at_hand(far, far.leaks) as there:
        assert not there.portion(1).exists()
    assert not far.portion(1).exists()
    assert not here.root.exists()
    assert not there.root.exists()


def test_json_goes_last_and_only_what_was_written(far, monkeypatch):
    sent = []
    honest = MemoryFileSystem.put_file

    def put_file(self, path, name, **options):
        sent.append(name.rsplit("/", 1)[-1])
        return honest(self, path, name, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with at_hand(far) as here:
        write_json(here.portion(0), 1)
        write_atomic(here.excluded, b"2")
        write_atomic(here.rejects / "z.jsonl.gz", b"3")
    assert sent == ["excluded.arrow", "z.jsonl.gz", "000000.json"]
    del sent[:]
    with at_hand(far, far.portion(0), far.rejects) as here:
        write_atomic(here.rejects / "z.jsonl.gz", b"4")
    assert sent == ["z.jsonl.gz"]
    del sent[:]
    with pytest.raises(RuntimeError), at_hand(far) as here:
        write_json(here.leaks, 5)
        raise RuntimeError
    assert sent == []


def test_what_the_store_lacks_goes_here_too(far):
    """From another machine a build of the same request may have been finished and begun anew."""
    write_json(far.portion(1), "old")
    write_json(far.leaks, "old")
    with at_hand(far) as here:
        write_json(here.portion(2), "new")
    bring(far, far.portions, far.leaks)
    assert [path.name for path in far.portions.iterdir()] == ["000002.json"]
    assert not far.leaks.exists()


def test_places_of_files(work):
    path = work.root / "listing-1.jsonl"
    write_atomic(path, b"one\ntwo\n")
    place = give(work, path)
    assert place == place_of(work, path)
    assert place == (f"{SHARED}/listing-1.jsonl" if work.shared else str(path))
    assert read_place(place) == b"one\ntwo\n"
    assert [line.strip() for line in read_lines(place)] == [b"one", b"two"]
    drop(work, path)
    for read in (read_place, lambda place: list(read_lines(place))):
        with pytest.raises(FileNotFoundError):
            read(place)


@pytest.mark.parametrize("number", [0, 1, 40])
def test_files_one_after_another(work, number):
    """More than are fetched ahead, with gaps; each is gone when the next one comes."""
    with at_hand(work) as here:
        for portion in range(number):
            if portion % 3 != 1:
                write_atomic(here.sketch(portion), str(portion).encode())
    found, before = [], None
    for path in Files(work, [work.sketch(portion) for portion in range(number)]):
        assert not work.shared or before is None or not before.exists()
        found.append(None if path is None else path.read_text())
        before = path
    assert found == [str(i) if i % 3 != 1 else None for i in range(number)]
    names = [f"{i:06d}.arrow" for i in range(number) if i % 3 != 1]
    (work.sketches / ".000001.arrow.ab12").touch()  # not finished
    assert [path.name for path in Files.of(work, work.sketches).paths] == names


def test_excluded_documents_are_fetched_once(work, monkeypatch):
    rows = pa.RecordBatch.from_pylist(
        [{"key": bytes(16), "reason": "near_duplicate", "detail": "of 1"}], schema=EXCLUDED
    )
    with at_hand(work) as here:
        write_table(here.excluded, rows)
    place = place_of(work, work.excluded)
    shared_work._table_of_store.cache_clear()
    assert excluded_at(place).rows == rows
    if work.shared:
        monkeypatch.setattr(shared_work.Store, "fetch", None)
    assert excluded_at(place).rows == rows
    shared_work._table_of_store.cache_clear()
