"""A corpus that is divided into splits already: what validates, and that training never sees it."""

import gzip
import io
import json
import random
import tarfile
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig, byte_config
from pipeline.images.process import process
from pipeline.leaks import note_leaks
from pipeline.refused import RefusedError
from pipeline.verify import verify

WORDS = [
    "the",
    "and",
    "that",
    "with",
    "have",
    "river",
    "mountain",
    "letter",
    "window",
    "garden",
    "answer",
    "morning",
]


def png(number):
    values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two archives: images 0 to 39 train, 40 to 49 test; 5 of them are copies over both.

    40 to 42 lie in the same archive and so in one batch, 48 and 49 do not; 7 is twice in train.
    """
    folder = tmp_path_factory.mktemp("corpus")
    train = {f"train/{number}.png": number for number in range(40)} | {"train/again.png": 7}
    train |= {f"train/copy of {number}.png": number for number in (40, 41, 42, 48, 49)}
    one = train | {f"test/{number}.png": number for number in range(40, 45)}
    two = {f"test/{number}.png": number for number in range(45, 50)}
    for name, files in (("a.tar", one), ("b.tar", two)):
        with tarfile.open(folder / name, "w") as tar:
            for path, number in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(png(number))
                tar.addfile(entry, io.BytesIO(png(number)))
    return folder


def make(corpus, dataset_dir, *overrides, **arguments):
    fixed = [
        f"dataset_dir={dataset_dir}",
        "corpus.format=image_archive",
        f"corpus.path=[{corpus}]",
        "images.encode.format=PNG",
        "split.validation_paths=['*/test/*']",
        "shards.target_mib=0.02",
    ]
    return build(load(PipelineConfig, None, [*fixed, *overrides]), **arguments)


def images_of(dataset_dir, split):
    urls = sorted(map(str, dataset_dir.glob(f"{split}-*.tar")))
    return Counter(sample["png"] for sample in webdataset.WebDataset(urls, shardshuffle=False))


def rejects_of(dataset_dir):
    with gzip.open(dataset_dir / "rejects/deduplicate.jsonl.gz") as file:
        return sorted((row["reason"], row["source"]) for row in map(json.loads, file))


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("built") / "dataset")


def test_each_image_is_in_its_split_and_training_loses_copies(built):
    config = load(PipelineConfig, built / "config.yaml").images
    expected = [process(png(number), config).encoded for number in range(50)]
    assert images_of(built, "train") == Counter(expected[:40])
    assert images_of(built, "validation") == Counter(expected[40:])
    leaks = [("in_validation", "a.tar")] * 5
    assert rejects_of(built) == [("duplicate", "a.tar"), *leaks]
    assert verify(built) == []


def test_any_number_of_workers_and_both_ways_give_the_same_bytes(built, corpus, tmp_path):
    two = make(corpus, tmp_path / "two", "num_workers=2")
    keyed = make(corpus, tmp_path / "keyed", spills=False)
    for other in (two, keyed):
        assert (other / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
        assert rejects_of(other) == rejects_of(built)
        for tar in built.glob("*.tar"):
            assert (other / tar.name).read_bytes() == tar.read_bytes()


def test_where_copies_are_kept_training_still_loses_those_of_validation(corpus, tmp_path):
    built = make(corpus, tmp_path / "dataset", "deduplicate=false")
    train = images_of(built, "train")
    assert sorted(train.values()) == [1] * 39 + [2]
    assert not train.keys() & images_of(built, "validation").keys()
    assert rejects_of(built) == [("in_validation", "a.tar")] * 5


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("test/*", r"split.validation_paths: test/\* matches none of the documents"),
        ("*", "takes all documents .*; narrow split.validation_paths"),
    ],
)
def test_globs_that_divide_nothing(corpus, tmp_path, path, message):
    with pytest.raises(RefusedError, match=message):
        make(corpus, tmp_path / "dataset", f"split.validation_paths=['{path}']")


def test_training_that_is_all_in_validation(corpus, tmp_path):
    with pytest.raises(RefusedError, match="takes all documents and leaves none to train on"):
        make(corpus, tmp_path / "dataset", "corpus.include=t*/*4[89].png")
    assert not (tmp_path / "dataset/manifest.json").exists()


def test_training_shards_that_are_all_in_validation(tmp_path, monkeypatch):
    """Of 40 training images 37 validate, too: five shards are planned, and two are not empty."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, first in (("a/train", 0), ("b/test", 3)):
        with tarfile.open(folder / f"{name[0]}.tar", "w") as tar:
            for number in range(first, 40):
                entry = tarfile.TarInfo(f"{name[2:]}/{number}.png")
                entry.size = len(png(number))
                tar.addfile(entry, io.BytesIO(png(number)))
    one = make(folder, tmp_path / "one")
    config = load(PipelineConfig, one / "config.yaml").images
    expected = [process(png(number), config).encoded for number in range(40)]
    assert images_of(one, "train") == Counter(expected[:3])
    assert images_of(one, "validation") == Counter(expected[3:])
    assert rejects_of(one) == [("in_validation", "a.tar")] * 37
    assert sorted(path.name for path in one.glob("train*.tar")) == ["train-000000.tar"]
    assert verify(one) == []
    keyed = make(folder, tmp_path / "keyed", spills=False)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.note_leaks", _die_behind(note_leaks))
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / "killed")
    killed = make(folder, tmp_path / "killed")
    for other in (keyed, killed):
        assert (other / "manifest.json").read_bytes() == (one / "manifest.json").read_bytes()
        for tar in one.glob("*.tar"):
            assert (other / tar.name).read_bytes() == tar.read_bytes()
    assert rejects_of(killed) == rejects_of(one)


def _die_behind(function):
    def die(*arguments):
        assert function(*arguments)
        raise KeyboardInterrupt

    return die


def test_text_files(config, tmp_path):
    """Each document of `val/` validates, and the one that `a.jsonl` has too does not train."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=60)) + f" {number}" for number in range(60)]
    (tmp_path / "corpus/val").mkdir(parents=True)
    for name, part in (("a.jsonl", texts[:41]), ("val/b.jsonl", texts[40:])):
        lines = [json.dumps({"text": text}) for text in part]
        (tmp_path / "corpus" / name).write_text("\n".join(lines))
    asked = ["split.validation_paths=['val/*']", "quality.enabled=false"]
    dataset = build(config(tmp_path / "corpus", tmp_path / "dataset", *asked))
    report = json.loads((dataset / "report.json").read_text())
    found = {split: sums["documents"] for split, sums in report["splits"].items()}
    assert found == {"train": 40, "validation": 20}
    assert rejects_of(dataset) == [("in_validation", "a.jsonl")]
    assert verify(dataset) == []


def test_without_paths_the_config_of_a_dataset_does_not_know_them(config):
    """A dataset that was built before there were paths is complete for the same config."""
    plain = byte_config(config("corpus", "dataset"))["split"]
    assert plain == {"fraction": 0.01, "documents": None, "seed": 0}
    named = byte_config(config("corpus", "dataset", "split.validation_paths=['v/*']"))["split"]
    assert named["validation_paths"] == ("v/*",) or named["validation_paths"] == ["v/*"]
