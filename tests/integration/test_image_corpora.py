"""Real corpora by the committed configs, and how webdataset and Hugging Face datasets read them."""

import fnmatch
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.manifest import read_manifest
from pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/data/images"


def real(*names):
    paths = [REAL / name for name in names]
    for path in paths:
        if not path.exists():
            pytest.skip(f"no {path}")
    return paths


def make(name, paths, dataset_dir, *overrides):
    """A dataset of a committed config, which holds no fault, and its samples by split."""
    named = ", ".join(map(str, paths))
    fixed = [f"dataset_dir={dataset_dir}", f"corpus.path=[{named}]", "num_workers=1"]
    config = load(PipelineConfig, ROOT / f"configs/pipeline/{name}.yaml", [*fixed, *overrides])
    dataset = build(config)
    assert verify(dataset) == []
    samples = {}
    for split in read_manifest(dataset).splits:
        urls = sorted(map(str, dataset.glob(f"{split}-*.tar")))
        samples[split] = list(webdataset.WebDataset(urls, shardshuffle=False))
        check_hugging_face(dataset, split, samples[split])
    return dataset, samples


def check_hugging_face(dataset, split, samples):
    loaded = datasets.load_dataset(
        str(dataset), split=split, cache_dir=str(dataset.parent / "cache")
    )
    assert len(loaded) == len(samples)
    extension = next(name for name in ("jpg", "png") if name in samples[0])
    for row, sample in zip(loaded, samples, strict=True):
        assert row["__key__"] == sample["__key__"]
        assert row.get("cls", 0) == int(sample.get("cls", b"0"))
        assert row.get("txt") == (sample["txt"].decode() if "txt" in sample else None)
        pixels = PIL.Image.open(io.BytesIO(sample[extension]))
        assert np.array_equal(np.asarray(row[extension]), np.asarray(pixels))


def members(archive, wanted):
    """Content by name."""
    with tarfile.open(archive) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if wanted(entry.name)}


def test_cifar10(tmp_path):
    """The first ten images of each class and split, byte for byte."""
    archives = real("cifar10/cifar10_train.tar.gz", "cifar10/cifar10_test.tar.gz")
    asked = "corpus.include='t*/000?.jpg'"
    dataset, samples = make("cifar10_test", archives, tmp_path / "dataset", asked)
    classes = read_manifest(dataset).classes
    assert len(classes) == 10
    for split, archive in zip(("train", "validation"), archives, strict=True):
        files = members(archive, lambda name: "/000" in name)
        expected = Counter((name.split("/")[1], content) for name, content in files.items())
        found = Counter((classes[int(one["cls"])], one["jpg"]) for one in samples[split])
        assert found == expected
        assert len(samples[split]) == 100


def test_mnist(tmp_path):
    (archive,) = real("mnist_png/mnist_train_20k.tar.gz")
    asked = ["corpus.include=train/?/10???.png", "split.documents=10"]
    dataset, samples = make("mnist", [archive], tmp_path / "dataset", *asked)
    assert read_manifest(dataset).classes == tuple("0123456789")
    assert len(samples["validation"]) == 10
    files = members(archive, lambda name: fnmatch.fnmatchcase(name, "train/?/10???.png"))
    expected = Counter((name.split("/")[1], content) for name, content in files.items())
    found = Counter(
        (one["cls"].decode(), one["png"]) for one in samples["train"] + samples["validation"]
    )
    assert found == expected


def captions_of(table):
    """The captions that match, by image."""
    captions = {}
    for line in table.read_text().splitlines():
        name, caption, match = line.split("\t")
        if match == "match":
            captions.setdefault(name, []).append(caption.strip())
    return captions


def test_flickr8k(tmp_path):
    """The small table, divided by the letter that its images begin with."""
    table, archive = real("flickr8k_224/dev.captions.tsv", "flickr8k_224/dev.images.tar")
    asked = [
        f"corpus.image_root='tar://::{archive}'",
        "split.validation_paths=['dev.captions.tsv/36*']",
    ]
    _, samples = make("flickr8k", [table], tmp_path / "dataset", *asked)
    captions = captions_of(table)
    images = members(archive, captions.__contains__)
    for split, wanted in (("validation", True), ("train", False)):
        expected = {
            images[name]: (said[0], said)
            for name, said in captions.items()
            if name.startswith("36") == wanted
        }
        found = {
            one["jpg"]: (one["txt"].decode(), json.loads(one["json"])["captions"])
            for one in samples[split]
        }
        assert found == expected
        assert found


def write_as_img2dataset(folder, images, captions):
    """Two tars as img2dataset's writer makes them, and what it puts beside: not to be read."""
    folder.mkdir()
    names = sorted(captions)
    stored = {}
    for shard, part in enumerate((names[:100], names[100:])):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number, name in enumerate(part):
                key = f"{shard:05d}{number:04d}"
                said = {"key": key, "url": name, "exif": "{}", "width": 224, "height": 224}
                said |= {"status": "success", "error_message": None}
                caption = f"{captions[name][0]} "
                sample = {"jpg": images[name], "txt": caption, "json": json.dumps(said, indent=4)}
                writer.write({"__key__": key, **sample})
                stored[key] = (images[name], caption.strip(), said)
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 100}')
    return stored


def test_img2dataset(tmp_path):
    table, archive = real("flickr8k_224/dev.captions.tsv", "flickr8k_224/dev.images.tar")
    captions = captions_of(table)
    images = members(archive, captions.__contains__)
    stored = write_as_img2dataset(tmp_path / "laion", images, captions)
    asked = ["split.validation_paths=['00001.tar/*']"]
    _, samples = make("img2dataset", [tmp_path / "laion"], tmp_path / "dataset", *asked)
    for split, first in (("train", "00000"), ("validation", "00001")):
        found = {
            json.loads(one["json"])["key"]: (
                one["jpg"], one["txt"].decode(), json.loads(one["json"]),
            )
            for one in samples[split]
        }  # fmt: skip
        assert found == {key: row for key, row in stored.items() if key.startswith(first)}
        assert found


def test_photographs_in_a_folder(tmp_path):
    (archive,) = real("imagenet_sample/imagenet_sample_250.tar")
    (tmp_path / "photos").mkdir()
    sizes = {}
    for name, content in list(members(archive, lambda name: True).items())[:30]:
        (tmp_path / "photos" / name).write_bytes(content)
        sizes[name] = PIL.Image.open(io.BytesIO(content)).size
    _, samples = make("image_folder", [tmp_path / "photos"], tmp_path / "dataset")
    found = {}
    for one in samples["train"] + samples["validation"]:
        image = PIL.Image.open(io.BytesIO(one["jpg"]))
        found[json.loads(one["json"])["file"]] = image.size
    assert found.keys() == sizes.keys()
    for name, (width, height) in sizes.items():
        scale = min(1, 256 / min(width, height))
        assert np.abs(np.array(found[name]) - (width * scale, height * scale)).max() <= 0.5
