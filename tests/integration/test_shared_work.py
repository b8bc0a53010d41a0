"""Builds whose workers share no folder: their work goes through the store of the dataset."""

import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs import load
from pipeline import encode, listing, shared_work
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.images import near_duplicates
from pipeline.runner import StageError
from tests.integration.store_files import URL, of_folder, promised, stored

pytestmark = pytest.mark.usefixtures("memory_store")


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a worker keeps of earlier files would hide that one is missing."""
    for cache in (shared_work._table_of_store, listing._fingerprints, encode._load):
        cache.cache_clear()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """40 pictures of two classes, a smaller version of ten of them, and no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 256, (9, 12, 3), np.uint8)
        path = folder / f"{'cat' if number % 3 else 'dog'}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture = PIL.Image.fromarray(values).resize((80, 60), PIL.Image.Resampling.BICUBIC)
        picture.save(path)
        if number < 10:
            picture.resize((72, 54)).save(path.with_suffix(".webp"), quality=95)
    (folder / "dog/broken.jpg").write_bytes(b"nothing")
    return folder


@pytest.fixture
def image_config(pictures):
    def make(dataset_dir, *overrides):
        words = ["corpus.format=image_folder", f"corpus.path=[{pictures}]", "num_workers=1"]
        words += ["near_duplicates.enabled=true", "images.resize.size=48", "max_bad_fraction=0.5"]
        words += ["shards.target_mib=0.05", "shards.chunk_mib=0.02", "split.documents=5"]
        return load(PipelineConfig, None, [f"dataset_dir={dataset_dir}", *words, *overrides])

    return make


@pytest.fixture
def calls(monkeypatch):
    """Names of the functions that were called: `calls.count(module, "name")` begins."""
    log = Calls()

    def count(module, name):
        honest = getattr(module, name)

        def called(*words, **named):
            log.append(name)
            return honest(*words, **named)

        monkeypatch.setattr(module, name, called)

    log.count = count
    return log


class Calls(list):
    pass


def kill(*_, **__):
    raise KeyboardInterrupt


def test_images_without_near_duplicates(image_config, tmp_path):
    near = build(image_config(tmp_path / "near"))
    build(image_config(URL, f"scratch_dir={tmp_path}/scratch"), spills=False)
    assert promised(stored()) == of_folder(near)
    assert len([name for name in stored() if name.endswith(".tar")]) > 2
    assert not stored(".work/")
    assert not (tmp_path / "scratch").exists()


def test_text_of_a_killed_build_is_finished_from_another_machine(
    config, corpus, built, digests, monkeypatch, tmp_path
):
    """What the first one left in the store is not made again: samples, and finished shards."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, URL, f"scratch_dir={tmp_path}/one"), spills=False)
    shutil.rmtree(tmp_path / "one")
    kinds = {name.split("/")[2] for name in stored(".work/")}
    assert {"portions", "rejects", "samples", "shards"} <= kinds
    sent = []
    honest = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "put_file",
        lambda self, path, name, **options: (sent.append(name), honest(self, path, name)),
    )
    build(config(corpus, URL, f"scratch_dir={tmp_path}/two"), spills=False)
    assert promised(stored()) == digests(built)
    assert not [name for name in sent if name.endswith(".tar") or "/samples/" in name]
    assert not stored(".work/")


def test_images_that_were_compared_are_not_compared_again(
    image_config, monkeypatch, calls, tmp_path
):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(image_config(URL, f"scratch_dir={tmp_path}/one"), spills=False)
    calls.count(near_duplicates, "find_clusters")
    build(image_config(URL, f"scratch_dir={tmp_path}/two"), spills=False)
    assert calls == []
    assert promised(stored()) == of_folder(build(image_config(tmp_path / "near")))
    assert calls == ["find_clusters"]


def test_groups_that_were_compared_are_not_compared_again(
    image_config, monkeypatch, calls, tmp_path
):
    """Killed when pairs are known, and clusters are not."""
    calls.count(near_duplicates, "compare_hashes")
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "find_clusters", kill)
        with pytest.raises(StageError):
            build(image_config(URL, f"scratch_dir={tmp_path}/scratch"), spills=False)
    assert len(calls) > 100
    del calls[:]
    build(image_config(URL, f"scratch_dir={tmp_path}/scratch"), spills=False)
    assert calls == []
    assert promised(stored()) == of_folder(build(image_config(tmp_path / "near")))


def test_training_shards_that_are_all_in_validation(config, calls, tmp_path):
    """Of 200 training documents 190 validate, too; what leaked reaches the workers' second plan."""
    texts = [f"document {number} " + f"word{number} " * 60 for number in range(200)]
    (tmp_path / "corpus/val").mkdir(parents=True)
    for name, part in (("a.jsonl", texts), ("val/b.jsonl", texts[10:])):
        lines = [json.dumps({"text": text}) for text in part]
        (tmp_path / "corpus" / name).write_text("\n".join(lines))
    words = ["split.validation_paths=['val/*']", "quality.enabled=false", "shards.target_mib=0.01"]
    near = build(config(tmp_path / "corpus", tmp_path / "near", *words))
    calls.count(sys.modules["pipeline.build"], "_run")
    far = config(tmp_path / "corpus", URL, f"scratch_dir={tmp_path}/scratch", *words)
    build(far, spills=False)
    assert calls == ["_run", "_run"]
    assert promised(stored()) == of_folder(near)


def test_a_killed_publication_is_tidied(image_config, monkeypatch, tmp_path):
    words = image_config(URL, f"scratch_dir={tmp_path}/scratch")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.into_store.IntoStore._remove_work", kill)
        with pytest.raises(KeyboardInterrupt):
            build(words, spills=False)
    assert "manifest.json" in stored()
    assert stored(".work/")
    build(words, spills=False)
    assert not stored(".work/")
    assert "upload.json" not in stored()


def test_another_config_leaves_nothing_of_the_first(image_config, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", kill)
        with pytest.raises(KeyboardInterrupt):
            build(image_config(URL, f"scratch_dir={tmp_path}/scratch"), spills=False)
    other = "images.filter.min_side=55"
    build(image_config(URL, f"scratch_dir={tmp_path}/scratch", other), spills=False)
    assert promised(stored()) == of_folder(build(image_config(tmp_path / "near", other)))
    assert not stored(".work/")


def test_a_store_that_fails_is_told_with_the_place(config, corpus, monkeypatch, tmp_path):
    honest = MemoryFileSystem.put_file

    def put_file(self, path, name, **options):
        if "/portions/" in name:
            raise PermissionError("Forbidden")
        return honest(self, path, name, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    place = rf"{URL}/.work/[0-9a-f]{{16}}/portions/00000[01].json: PermissionError: Forbidden"
    with pytest.raises(StageError, match=place):
        build(config(corpus, URL, f"scratch_dir={tmp_path}/scratch"), spills=False)
    assert "manifest.json" not in stored()
