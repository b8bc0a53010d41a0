"""Corpus files whose names are no text: everything of them is in the dataset or a reject."""

import gzip
import io
import json
import os

import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.manifest import read_manifest
from pipeline.verify import verify

pytestmark = pytest.mark.slow


def write(folder, name, content):
    """A file below a folder by the bytes of its name."""
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def built(tmp_path, *overrides):
    places = [f"dataset_dir={tmp_path / 'dataset'}", f"corpus.path=[{tmp_path / 'corpus'}]"]
    asked = [*places, "num_workers=2", "max_bad_fraction=1", "split.fraction=0", *overrides]
    dataset = build(load(PipelineConfig, None, asked))
    assert verify(dataset) == []
    return dataset


def rejects(dataset):
    return {
        (row["source"], row["reason"])
        for path in (dataset / "rejects").glob("*.jsonl.gz")
        for row in map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    }


def samples(dataset):
    urls = sorted(map(str, dataset.glob("*.tar")))
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def jpeg(colour):
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(file, "JPEG")
    return file.getvalue()


def test_images(tmp_path):
    """Of one folder whose name is no text, and beside it one with the name in UTF-8."""
    good = {b"caf\xe9/\xff.jpg": "red", b"caf\xe9/b.jpg": "green", "café/b.jpg".encode(): "blue"}
    for name, colour in good.items():
        write(tmp_path / "corpus", name, jpeg(colour))
        write(tmp_path / "corpus", name[:-4] + b".txt", colour.encode())
    write(tmp_path / "corpus", b"caf\xe9/silent\xff.jpg", jpeg("white"))
    write(tmp_path / "corpus", b"caf\xe9/bad\xff.jpg", b"no image")
    write(tmp_path / "corpus", b"caf\xe9/bad\xff.txt", b"of no image")
    asked = ["classes=true", "caption_extension=.txt", "keep_name=true"]
    dataset = built(tmp_path, "corpus.format=image_folder", *(f"corpus.{one}" for one in asked))
    assert read_manifest(dataset).classes == (r"caf\xe9", "café")
    found = {json.loads(one["json"])["file"]: (one["cls"], one["txt"]) for one in samples(dataset)}
    assert found == {
        r"caf\xe9/\xff.jpg": (b"0", b"red"),
        r"caf\xe9/b.jpg": (b"0", b"green"),
        "café/b.jpg": (b"1", b"blue"),
    }
    assert rejects(dataset) == {
        (r"caf\xe9/silent\xff.jpg", "missing_caption"),
        (r"caf\xe9/bad\xff.jpg", "unknown_format"),
    }


WHOLE = ["tokenizer.kind=characters", "quality.enabled=false"]


def test_texts(tmp_path):
    texts = {b"a\xe9.txt": "one mill", b"b\xff.txt": "two mills"}
    for name, text in texts.items():
        write(tmp_path / "corpus", name, text.encode())
    write(tmp_path / "corpus", b"c\xff.txt", b"\xff\xfe no text")
    write(tmp_path / "corpus", b"d\xff.txt", b"one mill")
    dataset = built(tmp_path, "corpus.format=text", *WHOLE)
    documents = sum(len(json.loads(one["json"])["documents"]) for one in samples(dataset))
    assert documents == len(texts)
    assert rejects(dataset) == {(r"c\xff.txt", "invalid_utf8"), (r"d\xff.txt", "duplicate")}
