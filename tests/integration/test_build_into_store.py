"""A build into a store: the bytes of a folder, the manifest last, reruns, and what is refused."""

import json
import re
import shutil
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import into_store
from pipeline.build import build
from pipeline.runner import StageError
from tests.integration.store_files import URL, promised, stored

pytestmark = pytest.mark.usefixtures("memory_store")


@pytest.fixture
def into(config, corpus, tmp_path):
    """`into("key=value")`: the config of a build into the store, by a scratch folder."""

    def make(*overrides, corpus=corpus):
        return config(corpus, URL, f"scratch_dir={tmp_path}/scratch", *overrides)

    return make


@pytest.fixture
def sent(monkeypatch):
    """Names of objects in the order in which they were sent; `sent.failing(name, error)` fails."""
    log = Sent()
    for method, place in (("put_file", 1), ("pipe_file", 0)):
        honest = getattr(MemoryFileSystem, method)

        def send(self, *words, honest=honest, place=place, **options):
            name = words[place].removeprefix("/bucket/web/")
            if any(re.search(pattern, name) for pattern in log.patterns):
                raise log.error
            log.append(name)
            return honest(self, *words, **options)

        monkeypatch.setattr(MemoryFileSystem, method, send)
    return log


class Sent(list):
    patterns = ()
    error = None

    def failing(self, pattern, error):
        self.patterns, self.error = (pattern,), error


def kill(*_, **__):
    raise KeyboardInterrupt


def test_the_bytes_of_a_folder_and_nothing_else(into, built, digests, sent, tmp_path, capsys):
    assert build(into()) == URL
    files = stored()
    assert promised(files) == digests(built)
    assert set(files) == {str(p.relative_to(built)) for p in built.rglob("*") if p.is_file()}
    assert sent[0] == "upload.json"
    assert sent[-1] == "manifest.json"
    assert max(i for i, name in enumerate(sent) if name.endswith(".tar")) < len(sent) - 5
    assert not (tmp_path / "scratch").exists()
    assert capsys.readouterr().out.splitlines()[-1] == URL


def test_a_second_build_says_so_and_sends_nothing(into, sent, tmp_path, capsys):
    build(into())
    del sent[:]
    build(into())
    assert sent == []
    assert f"{URL}: complete already, of this config and corpus" in capsys.readouterr().out
    assert not (tmp_path / "scratch").exists()


def test_the_same_bytes_without_spill_files(into, built, digests):
    build(into(), spills=False)
    assert promised(stored()) == digests(built)


def test_a_missing_package_is_named_with_its_extra(config, corpus, monkeypatch, tmp_path):
    for name in ("s3fs", "aiobotocore"):
        monkeypatch.setitem(sys.modules, name, None)
    found_before = sys.modules["fsspec.registry"]._registry  # by another test
    monkeypatch.delitem(found_before, "s3", raising=False)
    with pytest.raises(ValueError, match=r"^s3://b/web: .*pip install 'millrace\[s3\]'"):
        build(config(corpus, "s3://b/web", f"scratch_dir={tmp_path}/scratch"))
    assert not (tmp_path / "scratch").exists()


def test_a_small_scratch_disk_is_warned_of(into, monkeypatch, caplog):
    usage = shutil.disk_usage("/")._replace(free=1)
    monkeypatch.setattr("pipeline.space.shutil.disk_usage", lambda _: usage)
    build(into())
    assert re.search(r"/scratch/web-[0-9a-f]{8}: 0.00 MiB are free", caplog.text)


def test_no_tar_stays_on_the_local_disk(into, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.build.publish", kill)
    with pytest.raises(KeyboardInterrupt):
        build(into())
    assert [name for name in stored() if name.endswith(".tar")]
    assert "manifest.json" not in stored()
    assert not list((tmp_path / "scratch").rglob("*.tar*"))


@pytest.mark.parametrize("moment", ["publish", "_write_beside", "manifest", "mark"])
def test_a_killed_build_leaves_no_manifest_and_is_finished_by_the_same_command(
    into, built, digests, sent, monkeypatch, moment
):
    with monkeypatch.context() as patch:
        if moment == "publish":
            patch.setattr("pipeline.build.publish", kill)
        elif moment == "_write_beside":
            patch.setattr("pipeline.publish._write_beside", kill)
        elif moment == "manifest":
            sent.failing("manifest.json", KeyboardInterrupt())
        else:
            patch.setattr(into_store.Store, "_remove", kill)
        with pytest.raises(KeyboardInterrupt):
            build(into())
    assert ("manifest.json" in stored()) == (moment == "mark")
    assert "upload.json" in stored()
    sent.failing("never", None)
    del sent[:]
    build(into())
    assert not [name for name in sent if name.endswith(".tar")]
    assert promised(stored()) == digests(built)
    assert "upload.json" not in stored()


def test_a_build_goes_on_where_the_scratch_folder_is_lost(
    config, corpus, built, digests, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, URL, f"scratch_dir={tmp_path}/lost"))
    build(config(corpus, URL, f"scratch_dir={tmp_path}/another"))
    assert promised(stored()) == digests(built)
    assert "upload.json" not in stored()
    with pytest.raises(ValueError, match=rf"complete|{URL}: holds a dataset of another config"):
        build(config(corpus, URL, "shuffle_seed=1", f"scratch_dir={tmp_path}/lost"))


def test_a_tar_that_was_lost_or_cut_is_written_again(into, built, digests, sent, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(into())
    fs = fsspec.filesystem("memory")
    first, second, third = sorted(name for name in stored() if name.endswith(".tar"))[:3]
    fs.pipe_file(f"/bucket/web/{first}", b"cut")
    fs.rm_file(f"/bucket/web/{second}")
    fs.rm_file(f"/bucket/web/{third}.idx")
    del sent[:]
    build(into())
    assert [name for name in sent if name.endswith(".tar")] == [first, second, third]
    assert promised(stored()) == digests(built)


def test_a_tar_that_goes_before_publication_is_told(into, monkeypatch):
    honest = into_store._check_shards

    def lose(store, shards, sizes):
        return honest(store, shards, {n: s for n, s in sizes.items() if n != "train-000001.tar"})

    monkeypatch.setattr(into_store, "_check_shards", lose)
    with pytest.raises(OSError, match=rf"{URL}/train-000001.tar: was sent .* run the same command"):
        build(into())
    assert "manifest.json" not in stored()


def test_another_config_takes_up_its_own_unfinished_build_and_leaves_no_shard_of_it(
    into, config, corpus, digests, monkeypatch, tmp_path
):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(into())
    larger = "shards.target_mib=0.05"
    before = {name for name in stored() if name.endswith(".tar")}
    build(into(larger))
    expected = digests(build(config(corpus, tmp_path / "folder", larger)))
    assert promised(stored()) == expected
    assert before - set(stored())


def test_another_config_of_another_machine_is_refused(config, corpus, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, URL, f"scratch_dir={tmp_path}/first"))
    before = stored()
    with pytest.raises(ValueError, match=rf"{URL}: holds an unfinished build of another .*/first"):
        build(config(corpus, URL, "shuffle_seed=1", f"scratch_dir={tmp_path}/second"))
    assert stored() == before


def test_two_builds_do_not_publish_over_one_another(into, monkeypatch):
    honest = into_store.IntoStore.publish

    def late(self, *words):
        mark = {"build": "f", "machine": "there", "scratch": "/s"}
        self.store.send_bytes("upload.json", json.dumps(mark).encode())
        honest(self, *words)

    monkeypatch.setattr(into_store.IntoStore, "publish", late)
    with pytest.raises(
        ValueError, match="another build has taken this place, on there in /s; wait"
    ):
        build(into())
    assert "manifest.json" not in stored()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-000000.tar", b""),
        ("notes.txt", b"precious"),
        ("upload.json", b"{"),
        ("upload.json", b'{"manifest_sha256": "of an upload"}'),
    ],
)
def test_what_another_left_is_not_overwritten(into, name, content, tmp_path):
    fsspec.filesystem("memory").pipe_file(f"/bucket/web/{name}", content)
    with pytest.raises(ValueError, match=rf"{URL}: holds {name}, but no manifest.json"):
        build(into())
    assert stored() == {name: content}
    assert not (tmp_path / "scratch").exists()


def test_a_changed_config_or_corpus_is_refused_as_for_folders(into, tmp_path):
    build(into())
    with pytest.raises(ValueError, match=rf"{URL}: holds a dataset of another config; choose"):
        build(into("shuffle_seed=1"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ValueError, match="of the same config, but its corpus"):
        build(into(corpus=other))


def test_a_store_that_stays_down_ends_the_build_with_the_object_and_a_rerun_goes_on(
    into, built, digests, sent
):
    sent.failing(r"train-000001\.tar$", OSError("slow down"))
    with pytest.raises(StageError, match=rf"{URL}/train-000001.tar: OSError: slow down"):
        build(into())
    assert "manifest.json" not in stored()
    sent.failing("never", None)
    build(into())
    assert promised(stored()) == digests(built)


def test_a_refusal_is_told_before_anything_is_read(into, sent, monkeypatch):
    monkeypatch.setattr("pipeline.build._build_shards", kill)
    sent.failing("upload.json", PermissionError("Forbidden"))
    with pytest.raises(OSError, match=rf"{URL}/upload.json: PermissionError: Forbidden"):
        build(into())


def test_a_scratch_folder_or_a_url_inside_of_the_corpus_is_refused(config, corpus):
    with pytest.raises(ValueError, match="scratch_dir: .* lies in the folder .* of the corpus"):
        build(config(corpus, URL, f"scratch_dir={corpus}/scratch"))
    with pytest.raises(ValueError, match="dataset_dir: .* lies in the folder .* of the corpus"):
        build(config("memory://bucket", URL))
