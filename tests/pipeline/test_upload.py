"""`python -m pipeline.upload`: every byte arrives, the manifest last, and a killed one goes on."""

import hashlib
import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import store
from pipeline.manifest import read_manifest
from pipeline.store import MARK
from pipeline.upload import upload

URL = "memory://bucket/plays"

pytestmark = pytest.mark.usefixtures("memory_store")


DOWN = OSError("slow down")


@pytest.fixture
def dataset(text_dataset):
    return text_dataset


def stored():
    fs = fsspec.filesystem("memory")
    return {name.removeprefix("/bucket/plays/"): fs.cat_file(name) for name in fs.find("/bucket")}


def local(dataset):
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in dataset.rglob("*")
        if path.is_file()
    }


def failing(monkeypatch, name, *, times, error=DOWN):
    """Every method that sends fails for this file, so many times; the names sent are returned."""
    left, sent = [times], []
    for method in ("put_file", "pipe_file"):
        honest = getattr(MemoryFileSystem, method)

        def send(self, first, second, honest=honest, method=method, **kwargs):
            target = second if method == "put_file" else first
            sent.append(target.rsplit("/", 1)[1])
            if target.endswith(name) and left[0]:
                left[0] -= 1
                raise error
            return honest(self, first, second, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, method, send)
    return sent


def test_every_file_arrives_and_the_manifest_last(dataset, monkeypatch):
    sent = failing(monkeypatch, "no such name", times=0)
    upload(dataset, URL)
    assert stored() == local(dataset)
    assert sent[0] == MARK
    assert sent[-1] == "manifest.json"
    assert sorted(sent[1:]) == sorted(name.rsplit("/", 1)[-1] for name in local(dataset))


def test_a_second_upload_sends_nothing(dataset, monkeypatch, capsys):
    upload(dataset, URL)
    sent = failing(monkeypatch, "no such name", times=0)
    upload(dataset, URL)
    assert sent == []
    assert capsys.readouterr().out.splitlines()[-1] == f"{URL}: holds this dataset already"


def test_an_error_that_passes_is_tried_again(dataset, monkeypatch, caplog):
    name = read_manifest(dataset).splits["train"][0].name
    sent = failing(monkeypatch, name, times=len(store.PAUSES))
    upload(dataset, URL)
    assert stored() == local(dataset)
    assert sent.count(name) == len(store.PAUSES) + 1
    assert caplog.messages == [f"{URL}/{name}: OSError: slow down; asked again"]


def test_a_store_that_stays_down_leaves_no_manifest_and_the_same_command_goes_on(
    dataset, monkeypatch
):
    name = read_manifest(dataset).splits["train"][0].name
    with monkeypatch.context() as broken:
        failing(broken, name, times=100)
        with pytest.raises(OSError, match=rf"{URL}/{name}: OSError: slow down"):
            upload(dataset, URL)
    before = stored()
    assert "manifest.json" not in before
    assert MARK in before
    sent = failing(monkeypatch, "no such name", times=0)
    upload(dataset, URL)
    assert stored() == local(dataset)
    kept = {one.rsplit("/", 1)[-1] for one in before if one != MARK}
    assert not kept & set(sent)


def test_a_file_that_was_cut_is_sent_again(dataset):
    upload(dataset, URL)
    fs = fsspec.filesystem("memory")
    name = read_manifest(dataset).splits["train"][0].name
    manifest = (dataset / "manifest.json").read_bytes()
    mark = {"manifest_sha256": hashlib.sha256(manifest).hexdigest()}
    fs.rm_file("/bucket/plays/manifest.json")
    fs.pipe_file(f"/bucket/plays/{MARK}", json.dumps(mark).encode())
    fs.pipe_file(f"/bucket/plays/{name}", b"cut")
    upload(dataset, URL)
    assert stored() == local(dataset)


@pytest.mark.parametrize("name", ["manifest.json", MARK, "notes.txt"])
def test_what_another_left_is_not_overwritten(dataset, name):
    fsspec.filesystem("memory").pipe_file(f"/bucket/plays/{name}", b"{}")
    with pytest.raises(ValueError, match=f"{URL}: holds {name} and no upload of this dataset"):
        upload(dataset, URL)
    assert stored() == {name: b"{}"}


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), FileNotFoundError("bucket")])
def test_a_refusal_is_told_at_once(dataset, monkeypatch, error):
    sent = failing(monkeypatch, MARK, times=100, error=error)
    with pytest.raises(OSError, match=f"{URL}/{MARK}: "):
        upload(dataset, URL)
    assert sent == [MARK]


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        upload(tmp_path, URL)
    assert stored() == {}


@pytest.mark.parametrize("content", [None, b"cut"])
def test_a_dataset_that_lacks_a_shard_is_not_sent(dataset, content):
    path = dataset / read_manifest(dataset).splits["train"][1].name
    path.unlink()
    if content:
        path.write_bytes(content)
    found = len(content or b"")
    with pytest.raises(ValueError, match=rf"{path.name}: has {found} bytes, .*pipeline\.verify"):
        upload(dataset, URL)
    assert stored() == {}
