"""Damage of the manifest, of whole files and of what lies beside the shards."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.manifest import Tokenizer, read_manifest, write_manifest
from pipeline.tokenizer import characters_tokenizer
from pipeline.verify import verify
from pipeline.verify_files import RULES

END = "<|endoftext|>"
SHARD = "train-000001.tar"


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace_file(name, make):
    """A damage that puts something else into the place of a file."""

    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


def add(name):
    return lambda folder: (folder / name).write_bytes(b"x")


def edit_manifest(change):
    """A damage of the manifest's text."""

    def damage(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def edit_tokenizer(**changes):
    def damage(folder):
        manifest = read_manifest(folder)
        tokenizer = Tokenizer(**{**dataclasses.asdict(manifest.tokenizer), **changes})
        write_manifest(dataclasses.replace(manifest, tokenizer=tokenizer), folder)

    return damage


def without_tokenizer(tree):
    return {**tree, "tokenizer": None}


WIDS = ("train.wids.json", "validation.wids.json")
SIDECARS = ("README.md", "config.yaml", "report.html", "report.json", *WIDS)
RENDERED = (
    *WIDS,
    ".nv-meta/.info.json",
    ".nv-meta/split.yaml",
    ".nv-meta/dataset.yaml",
)
READABLE = ("config.yaml", "report.html", "report.json", "README.md", *RENDERED)
DAMAGES = {
    "unreadable manifest": (
        lambda folder: (folder / "manifest.json").write_text("{"),
        [("manifest", "manifest.json", "damaged")],
    ),
    "manifest with another fingerprint": (
        edit_manifest(lambda tree: {**tree, "fingerprint": "0" * 64}),
        [("manifest", "manifest.json", "do not give its fingerprint")],
    ),
    "manifest with another config": (
        edit_manifest(lambda tree: {**tree, "config": {"shuffle_seed": 1}}),
        [("manifest", "manifest.json", "config_hash")],
    ),
    "missing shard": (remove(SHARD), [("files", SHARD, "missing")]),
    "missing index": (remove(f"{SHARD}.idx"), [("files", f"{SHARD}.idx", "missing")]),
    "missing tokenizer": (remove("tokenizer.json"), [("files", "tokenizer.json", "missing")]),
    "a tar too many": (
        add("train-000002.tar"),
        [("files", "train-000002.tar", "does not name it")],
    ),
    "a file too many": (add("notes.txt"), [("files", "notes.txt", "does not name it")]),
    "a shard is a link to nothing": (
        replace_file(SHARD, lambda path: path.symlink_to("/nonexistent/blob")),
        [("files", SHARD, "is no regular file")],
    ),
    "a shard is a folder": (
        replace_file(SHARD, Path.mkdir),
        [("files", SHARD, "is no regular file")],
    ),
    "a shard is a pipe": (
        replace_file(SHARD, os.mkfifo),
        [("files", SHARD, "is no regular file")],
    ),
    "an index is a link to nothing": (
        replace_file(f"{SHARD}.idx", lambda path: path.symlink_to("/nonexistent/blob")),
        [("files", f"{SHARD}.idx", "is no regular file")],
    ),
    "an index is a folder": (
        replace_file(f"{SHARD}.idx", Path.mkdir),
        [("files", f"{SHARD}.idx", "is no regular file")],
    ),
    "the tokenizer is a folder": (
        replace_file("tokenizer.json", Path.mkdir),
        [("files", "tokenizer.json", "is no regular file")],
    ),
    "the tokenizer is a link to nothing": (
        replace_file("tokenizer.json", lambda path: path.symlink_to("/nonexistent/blob")),
        [("files", "tokenizer.json", "is no regular file")],
    ),
    "another kind": (
        edit_manifest(lambda tree: {**tree, "kind": "banana"}),
        [
            ("manifest", "manifest.json", "is of kind 'banana', not text"),
            ("report", "report.json", "is of kind 'text', the manifest of banana"),
        ],
    ),
    "no sidecar": (
        lambda folder: [remove(name)(folder) for name in SIDECARS],
        [("files", name, "is missing") for name in SIDECARS],
    ),
    "no folders": (
        lambda folder: [shutil.rmtree(folder / name) for name in (".nv-meta", "rejects")],
        [("files", ".nv-meta", "is missing"), ("files", "rejects", "is missing")],
    ),
    "files instead of folders": (
        lambda folder: [
            (shutil.rmtree(folder / name), add(name)(folder)) for name in (".nv-meta", "rejects")
        ],
        [("files", ".nv-meta", "is no folder"), ("files", "rejects", "is no folder")],
    ),
    "a file of Energon missing": (
        remove(".nv-meta/split.yaml"),
        [("files", ".nv-meta/split.yaml", "is missing")],
    ),
    "sidecars that cannot be read": (
        lambda folder: [(folder / name).write_bytes(b"{\xff") for name in READABLE],
        [("sidecars", name, "cannot be read: ") for name in READABLE],
    ),
    "sidecars without fields": (
        lambda folder: [
            (folder / name).write_text("[]") for name in ("config.yaml", "report.json")
        ],
        [("sidecars", name, "holds no fields") for name in ("config.yaml", "report.json")],
    ),
    "sidecars of other shards": (
        lambda folder: [(folder / name).write_text("{}") for name in RENDERED],
        [("sidecars", name, "does not agree with the manifest") for name in RENDERED],
    ),
    "a card of other splits": (
        lambda folder: (folder / "README.md").write_text("---\nconfigs: []\n---\n"),
        [("sidecars", "README.md", "its configs are not the splits")],
    ),
    "another tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text(
            characters_tokenizer("ABCDEFGH", end_of_document=END)
        ),
        [("tokenizer", "tokenizer.json", "sha256")],
    ),
    "another vocabulary size": (
        edit_tokenizer(vocab_size=10),
        [("tokenizer", "tokenizer.json", "has 9 ids, the manifest says 10")],
    ),
    "a vocabulary too small": (
        edit_tokenizer(vocab_size=8),
        [
            ("tokenizer", "tokenizer.json", "has 9 ids, the manifest says 8"),
            *(
                ("tokens", f"{name}: ", "is 8; the vocabulary has 8 ids")
                for name in ["train-000000.tar"] * 3 + [SHARD] * 3 + ["validation-000000.tar"]
            ),
        ],
    ),
    "no tokenizer in the manifest": (
        edit_manifest(without_tokenizer),
        [
            ("files", "tokenizer.json", "does not name it"),
            ("tokenizer", "manifest.json", "names no tokenizer"),
        ],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named(text_dataset, damage, name):
    damage(text_dataset, *DAMAGES[name])


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{}", b"[" * 10**6, b'{"model": null}'], ids=range(5)
)
def test_a_sealed_tokenizer_that_is_none(text_dataset, content):
    (text_dataset / "tokenizer.json").write_bytes(content)
    edit_tokenizer(sha256=hashlib.sha256(content).hexdigest())(text_dataset)
    (fault,) = verify(text_dataset)
    assert (fault.rule, fault.where) == ("tokenizer", "tokenizer.json")
    assert "cannot be read: " in fault.message


def test_a_tokenizer_without_tokens(text_dataset):
    path = text_dataset / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"], tree["model"]["merges"], tree["added_tokens"] = {}, [], []
    path.write_text(json.dumps(tree))
    edit_tokenizer(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(text_dataset)
    assert [fault.message.partition(",")[0] for fault in verify(text_dataset)] == [
        "has 0 ids",
        "id 8",
    ]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "lists no shard of 'train'"),
        ({"validation": ()}, "lists no shard of 'validation'"),
        ({"test": ()}, "has a split 'test'; there are train, validation"),
    ],
)
def test_a_dataset_has_a_train_shard(text_dataset, splits, message):
    write_manifest(dataclasses.replace(read_manifest(text_dataset), splits=splits), text_dataset)
    found = [fault.message for fault in verify(text_dataset) if fault.rule == "manifest"]
    assert "lists no shard of 'train'" in found
    assert message in found


def test_every_rule_has_a_damage():
    rules = {rule for _, expected in DAMAGES.values() for rule, *_ in expected}
    assert rules - {"tokens", "report"} == {"manifest", *RULES, "tokenizer"}
