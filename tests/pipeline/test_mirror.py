"""A dataset in a store, looked at from here: verified with every fault that a folder shows."""

import json
import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import store
from pipeline.index import index_dataset
from pipeline.mirror import mirror_of
from pipeline.report import print_report
from pipeline.upload import upload
from pipeline.verify import main, verify

URL = "memory://bucket/plays"
SHARD = "train-000001.tar"


@pytest.fixture
def fs(text_dataset, monkeypatch):
    """A store that holds the dataset."""
    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    upload(text_dataset, URL)
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()


def test_a_whole_dataset_has_no_fault(fs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert verify(URL) == []
    with pytest.raises(SystemExit) as ended:
        main([URL])
    assert ended.value.code == 0
    assert f"{URL}: no fault" in capsys.readouterr().out


def test_a_dataset_without_rejects_has_no_fault(fs, text_dataset):
    report = json.loads(fs.cat_file("/bucket/plays/report.json"))
    fs.pipe_file("/bucket/plays/report.json", json.dumps(report | {"rejects": []}).encode())
    fs.rm("/bucket/plays/rejects", recursive=True)
    assert verify(URL) == []


def test_indexes_and_sidecars_are_made_anew(fs, capsys):
    before = {name: fs.cat_file(name) for name in fs.find("/bucket")}
    gone = [name for name in before if name.endswith((".idx", ".wids.json")) or ".nv-meta" in name]
    for name in gone:
        fs.rm_file(name)
    index_dataset(URL)
    assert {name: fs.cat_file(name) for name in fs.find("/bucket")} == before
    assert f"{URL}: indexes of 3 shards and the sidecars written" in capsys.readouterr().out
    fs.rm_file(f"/bucket/plays/{SHARD}")
    with pytest.raises(FileNotFoundError, match=f"^{URL}/{SHARD}: is missing; the manifest lists"):
        index_dataset(URL)


DAMAGES = {
    "a flipped bit": (
        lambda fs, path: fs.pipe_file(path, flipped(fs.cat_file(path))),
        {"sha256", "crc32"},
    ),
    "a tar that is gone": (lambda fs, path: fs.rm_file(path), {"files"}),
    "a cut tar": (lambda fs, path: fs.pipe_file(path, fs.cat_file(path)[:-99]), {"bytes", "tar"}),
    "a stranger": (lambda fs, path: fs.pipe_file(f"{path}.old", b"x"), {"files"}),
    "no index": (lambda fs, path: fs.rm_file(f"{path}.idx"), {"files"}),
    "a damaged manifest": (
        lambda fs, path: fs.pipe_file("/bucket/plays/manifest.json", b"{"),
        {"manifest"},
    ),
}


def flipped(content):
    return content[:700] + bytes([content[700] ^ 1]) + content[701:]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(fs, name):
    damage, rules = DAMAGES[name]
    damage(fs, f"/bucket/plays/{SHARD}")
    faults = verify(URL)
    assert {fault.rule for fault in faults} >= rules
    assert not any("/tmp" in f"{fault.where} {fault.message}" for fault in faults)


def test_a_key_in_two_shards_is_found(fs):
    content = fs.cat_file("/bucket/plays/train-000000.tar")
    fs.pipe_file(f"/bucket/plays/{SHARD}", content)
    assert "keys" in {fault.rule for fault in verify(URL)}


def test_a_download_that_is_cut_is_made_again(fs, monkeypatch):
    honest, left = MemoryFileSystem.get_file, [2]

    def cut(self, there, here, **options):
        honest(self, there, here, **options)
        if there.endswith(SHARD) and left[0]:
            left[0] -= 1
            os.truncate(here, 9)

    monkeypatch.setattr(MemoryFileSystem, "get_file", cut)
    assert verify(URL) == []
    assert left == [0]


def test_a_tar_takes_room_only_while_it_is_needed(fs):
    with mirror_of(URL) as mirror:
        path = mirror.folder / SHARD
        size = fs.info(f"/bucket/plays/{SHARD}")["size"]
        assert (path.stat().st_size, path.stat().st_blocks) == (size, 0)
        with mirror.whole(SHARD) as fetched:
            assert fetched.read_bytes() == fs.cat_file(f"/bucket/plays/{SHARD}")
        assert (path.stat().st_size, path.stat().st_blocks) == (size, 0)
        folder = mirror.folder
    assert not folder.exists()


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out"])
def test_no_object_is_written_outside_of_the_folder(fs, name):
    MemoryFileSystem.store[f"/bucket/plays/{name}"] = MemoryFileSystem.store[
        "/bucket/plays/config.yaml"
    ]
    with pytest.raises(ValueError, match="which names no file"), mirror_of(URL):
        pass


def test_no_dataset(fs):
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none: no manifest\.json, so"):
        verify("memory://bucket/none")
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none/report\.json: no report"):
        print_report("memory://bucket/none")


def test_the_report_of_a_url(fs, capsys):
    print_report(f"{URL}/")
    assert capsys.readouterr().out.splitlines()[-1] == f"{URL}/"
