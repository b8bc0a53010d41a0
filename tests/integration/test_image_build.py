"""Class folders of images become a dataset that everything reads."""

import gzip
import io
import json
import os
from functools import partial

import datasets
import numpy as np
import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.images.process import process
from pipeline.manifest import read_manifest
from pipeline.verify import verify

CLASSES = ("cat", "dog", "émeu")
SHAPE = [
    "images.resize.size=32",
    "images.filter.min_side=10",
    "split.fraction=0.2",
    "shards.target_mib=0.05",
    "max_bad_fraction=0.5",
]


def jpeg(number, size=(80, 60)):
    values = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(values).resize(size).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 images in three classes, a copy of one, and some that are refused."""
    folder = tmp_path_factory.mktemp("corpus")
    files = {f"{CLASSES[number % 3]}/{number}": jpeg(number) for number in range(60)}
    files |= {
        "dog/again": jpeg(4),
        "cat/empty": b"",
        "cat/cut": jpeg(3)[:500],
        "cat/page": b"<html>not found</html>",
        "cat/tiny": jpeg(99, (7, 7)),
        "loose": jpeg(98),
    }
    for name, content in files.items():
        path = folder / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".txt").write_text(f"café {path.stem}")
    (folder / "dog/silent.jpg").write_bytes(jpeg(97))
    return folder


def make(corpus, dataset_dir, *overrides, **arguments):
    fixed = [
        f"dataset_dir={dataset_dir}",
        "corpus.format=image_folder",
        "corpus.classes=true",
        f"corpus.path=[{corpus}]",
        "corpus.caption_extension=.txt",
        *SHAPE,
    ]
    return build(load(PipelineConfig, None, [*fixed, *overrides]), **arguments)


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("built") / "dataset")


def samples_of(dataset_dir, pattern="*.tar"):
    urls = sorted(map(str, dataset_dir.glob(pattern)))
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def test_every_image_is_there_once_as_processed(built, corpus):
    """Bytes, class and caption of each, against the kernel on the files of the corpus."""
    config = load(PipelineConfig, built / "config.yaml").images
    expected = {}
    for number in range(60):
        name = CLASSES[number % 3]
        done = process((corpus / name / f"{number}.jpg").read_bytes(), config)
        expected[f"café {number}"] = (done.encoded, CLASSES.index(name))
    samples = samples_of(built)
    found = {s["txt"].decode(): (s["jpg"], int(s["cls"])) for s in samples}
    assert found == expected  # of the copies 4 stays: its name is the smaller one
    assert len(samples) == 60
    for sample in samples:
        assert json.loads(sample["json"]) == {"width": 43, "height": 32}
        assert PIL.Image.open(io.BytesIO(sample["jpg"])).size == (43, 32)


def test_manifest_and_verify(built):
    manifest = read_manifest(built)
    assert (manifest.kind, manifest.classes, manifest.tokenizer) == ("image", CLASSES, None)
    assert set(manifest.splits) == {"train", "validation"}
    assert sum(map(len, manifest.splits.values())) > 2
    assert verify(built) == []


def test_nothing_vanishes(built):
    report = json.loads((built / "report.json").read_text())
    assert {(row["stage"], row["reason"]): row["records"] for row in report["rejects"]} == {
        ("read", "missing_class"): 1,
        ("read", "missing_caption"): 1,
        ("read", "empty_file"): 1,
        ("decode", "truncated_image"): 1,
        ("decode", "unknown_format"): 1,
        ("filter", "side_too_small"): 1,
        ("deduplicate", "duplicate"): 1,
    }
    assert report["funnel"][0]["records_in"] == 67
    assert report["funnel"][-1]["records_out"] == 60


def test_any_number_of_workers_and_both_ways_give_the_same_bytes(built, corpus, tmp_path):
    two = make(corpus, tmp_path / "two", "num_workers=2")
    keyed = make(corpus, tmp_path / "keyed", spills=False)
    for other in (two, keyed):
        assert (other / "manifest.json").read_bytes() == (built / "manifest.json").read_bytes()
        for tar in built.glob("*.tar"):
            assert (other / tar.name).read_bytes() == tar.read_bytes()


def test_hugging_face_reads_the_folder(built):
    loaded = datasets.load_dataset(str(built), split="train")
    rows = {row["txt"]: (row["cls"], row["jpg"].size) for row in loaded}
    expected = {
        sample["txt"].decode(): (int(sample["cls"]), (43, 32))
        for sample in samples_of(built, "train-*.tar")
    }
    assert rows == expected


def test_hugging_face_reads_metadata_of_any_types(tmp_path):
    """It infers types from five samples, unless the card tells them."""
    odd = [None] * 20 + [1] * 8 + [0.5, "half", True, [1, "two"], {"deep": None}]
    (tmp_path / "images").mkdir()
    rows = []
    for number, value in enumerate(odd):
        (tmp_path / f"images/{number}.jpg").write_bytes(jpeg(number))
        rows.append({"image": f"images/{number}.jpg", "odd": value, "caption": f"image {number}"})
        rows[-1] |= {"rare": number} if number > 30 else {}
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["format=image_table", f"path=[{tmp_path / 'table.jsonl'}]", "image_column=image"]
    asked += ["caption_column=caption", "metadata_columns=['*']"]
    places = [f"dataset_dir={tmp_path / 'dataset'}", *(f"corpus.{one}" for one in asked)]
    dataset = build(load(PipelineConfig, None, [*places, "split.fraction=0", "num_workers=1"]))
    assert verify(dataset) == []
    expected = {one["__key__"]: json.loads(one["json"]) for one in samples_of(dataset, "*.tar")}
    assert len(expected) == len(odd)
    for streaming in (False, True):
        loaded = datasets.load_dataset(
            str(dataset), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
        )
        assert {row["__key__"]: row["json"] for row in loaded} == expected


def test_a_dataset_is_a_corpus_again(built, tmp_path):
    """Read as WebDataset tars it gives the same bytes: images, classes, captions, metadata."""
    asked = [
        f"dataset_dir={tmp_path / 'again'}",
        "corpus.format=webdataset",
        f"corpus.path=[{built}]",
        "corpus.class_member=cls",
        f"corpus.class_names={built / 'manifest.json'}",
        "corpus.caption_member=txt",
        "images.resize.mode=none",
        "split.fraction=0.2",
        "shards.target_mib=0.05",
    ]
    again = build(load(PipelineConfig, None, asked))
    assert read_manifest(again).splits == read_manifest(built).splits
    assert read_manifest(again).classes == CLASSES
    for tar in built.glob("*.tar"):
        assert (again / tar.name).read_bytes() == tar.read_bytes()


def test_tables_on_one_worker_and_two_give_the_bytes_of_the_folder(built, corpus, tmp_path):
    for name in CLASSES:
        paths = sorted(path for path in (corpus / name).glob("*.jpg") if path.stem != "silent")
        rows = [f"{path},{name},café {path.stem}" for path in paths]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,label,text", *rows]))
    asked = [
        "corpus.format=image_table",
        f"corpus.path=[{tmp_path}/*.csv]",
        f"corpus.image_root={corpus}",
        "corpus.allow_anywhere=true",
        "corpus.class_column=label",
        "corpus.caption_column=text",
        *SHAPE,
    ]
    for workers in (1, 2):
        folder = tmp_path / f"dataset{workers}"
        override = [f"dataset_dir={folder}", f"num_workers={workers}"]
        dataset = build(load(PipelineConfig, None, [*asked, *override]))
        assert read_manifest(dataset).splits == read_manifest(built).splits
        assert read_manifest(dataset).classes == CLASSES
        for tar in built.glob("*.tar"):
            assert (dataset / tar.name).read_bytes() == tar.read_bytes()


def test_too_many_unreadable_images_refuse_the_build(corpus, tmp_path):
    with pytest.raises(Exception, match=r"5 of 67 records \(7.46%\).*max_bad_fraction"):
        make(corpus, tmp_path / "dataset", "max_bad_fraction=0.04")
    assert not (tmp_path / "dataset/manifest.json").exists()


def test_a_poisoned_image_is_lost_alone(tmp_path):
    """One of many pixels between good ones: too much memory, or too much time."""
    folder = tmp_path / "corpus/cat"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number))
        (folder / f"{number:02d}.txt").write_text("one")
    PIL.Image.new("RGB", (9000, 9000)).save(folder / "05b.png")
    (folder / "05b.txt").write_text("one")
    limits = {"memory_mib=100": "out_of_memory", "time_limit_seconds=0.1": "too_slow"}
    for workers, (limit, reason) in enumerate(limits.items(), 1):
        asked = [f"images.decode.{limit}", f"num_workers={workers}"]
        dataset = make(tmp_path / "corpus", tmp_path / reason, *asked)
        with gzip.open(dataset / "rejects/decode.jsonl.gz") as file:
            (reject,) = map(json.loads, file)
        assert (reject["source"], reject["reason"]) == ("cat/05b.png", reason)
        config = load(PipelineConfig, dataset / "config.yaml").images
        expected = {process(jpeg(number), config).encoded for number in range(12)}
        assert {sample["jpg"] for sample in samples_of(dataset)} == expected


def test_a_crash_of_a_decoder_is_lost_alone(corpus, tmp_path, built, monkeypatch):
    """The build of the whole corpus, by a decoder that crashes at one image."""
    (tmp_path / "fragile.py").write_text(
        "import os, signal\n"
        "from pipeline.images.process import process\n"
        "def fragile(image, config, *, look, poison):\n"
        "    if image == poison:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return process(image, config, look=look)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    from fragile import fragile

    monkeypatch.setattr("pipeline.images.stages.process", partial(fragile, poison=jpeg(7)))
    dataset = make(corpus, tmp_path / "dataset")
    with gzip.open(dataset / "rejects/decode.jsonl.gz") as file:
        lost = [row for row in map(json.loads, file) if row["reason"] == "decoder_crashed"]
    assert [(row["source"], row["detail"]) for row in lost] == [("dog/7.jpg", "SIGSEGV")]
    expected = {sample["txt"]: sample["jpg"] for sample in samples_of(built)}
    del expected["café 7".encode()]
    assert {sample["txt"]: sample["jpg"] for sample in samples_of(dataset)} == expected
