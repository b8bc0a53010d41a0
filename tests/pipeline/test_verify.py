import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.blocks import cut_blocks
from pipeline.index import write_sidecars
from pipeline.manifest import Chunks, Manifest, Tokenizer, read_manifest, write_manifest
from pipeline.tar import encode_npy, index_path, render_header, scan, write_shard
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer
from pipeline.verify import EXAMPLES, RULES, main, verify

END = "<|endoftext|>"
ALPHABET = "abcdefgh"
SHARD = "train-000001.tar"


@pytest.fixture
def dataset(tmp_path):
    """Two train shards of three blocks and one validation shard of one, in chunks of a block."""
    text = characters_tokenizer(ALPHABET, end_of_document=END)
    (tmp_path / "tokenizer.json").write_bytes(text.encode())
    splits = {
        "train": tuple(make_shard(tmp_path, f"train-{i:06d}", seed=i) for i in range(2)),
        "validation": (make_shard(tmp_path, "validation-000000", seed=9, documents=2),),
    }
    manifest = Manifest(
        kind="text",
        splits=splits,
        config={"shuffle_seed": 0},
        libraries={},
        tokenizer=describe_tokenizer(text, end_of_document=END),
        token_dtype="uint16",
    )
    write_manifest(manifest, tmp_path)
    write_beside(manifest, tmp_path)
    return tmp_path


def write_beside(manifest, folder):
    write_sidecars(manifest, folder)
    (folder / "config.yaml").write_text("shuffle_seed: 0\n")
    (folder / "report.json").write_text("{}")
    (folder / "report.html").write_text("<!doctype html>")
    (folder / "rejects").mkdir()
    for stage in ("read", "quality"):
        lines = gzip.compress(b'{"reason": "a"}\n') + gzip.compress(b'{"reason": "b"}\n')
        (folder / "rejects" / f"{stage}.jsonl.gz").write_bytes(lines)


def make_shard(folder, name, *, seed, documents=6):
    rng = np.random.default_rng(seed)
    lengths = [20] * documents  # blocks of 50: some begin inside a document
    ends = np.cumsum(lengths)
    tokens = rng.integers(0, len(ALPHABET), ends[-1]).astype(np.uint16)
    tokens[ends - 1] = len(ALPHABET)
    keys = [rng.bytes(16).hex() for _ in lengths]
    samples = cut_blocks(name, tokens, ends - 20, keys, block_tokens=50)
    return write_shard(folder / f"{name}.tar", samples, chunk_bytes=1)


def read_members(path):
    """[(name, content, header)] of a tar."""
    data = path.read_bytes()
    return [(m.name, data[m.start : m.start + m.size], m.header) for m in scan(path)]


def write_members(folder, members, name=SHARD, *, more_tokens=0):
    """Write a tar of any members, its index and a fitting row of the manifest in one chunk."""
    data, offsets, previous = b"", [], None
    for member, content, header in members:
        if member.partition(".")[0] != previous:
            offsets.append(len(data))
        previous = member.partition(".")[0]
        data += (header or render_header(member, len(content))) + content
        data += bytes(-len(data) % 512)
    end = len(data)
    data += bytes(1024 + -(end + 1024) % 10240)
    (folder / name).write_bytes(data)
    index_path(folder / name).write_bytes(struct.pack(f"<{len(offsets) + 1}Q", *offsets, end))
    tokens = row(folder, name).tokens + more_tokens
    chunks = Chunks((0,), (0,), (end,), (len(offsets),), (tokens,), (zlib.crc32(data[:end]),))
    seal(folder, name, samples=len(offsets), tokens=tokens, chunks=chunks)


def row(folder, name=SHARD):
    shards = read_manifest(folder).splits["train"]
    return next(shard for shard in shards if shard.name == name)


def seal(folder, name=SHARD, **changes):
    """Make the manifest agree with the tar's bytes, and change what else is given."""
    manifest = read_manifest(folder)
    data = (folder / name).read_bytes()
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    shards = tuple(
        dataclasses.replace(shard, **{**sums, **changes}) if shard.name == name else shard
        for shard in manifest.splits["train"]
    )
    splits = {**manifest.splits, "train": shards}
    manifest = dataclasses.replace(manifest, splits=splits)
    write_manifest(manifest, folder)
    write_sidecars(manifest, folder)


def edit(change, **more):
    """A damage that changes the list of members, with everything else made to agree."""

    def damage(folder):
        write_members(folder, change(read_members(folder / SHARD)), **more)

    return damage


def replace_member(extension, change, *, sample=1):
    """A damage that changes the content of one member."""

    def change_members(members):
        name = f"train-000001-{sample:06d}.{extension}"
        return [(n, change(c) if n == name else c, None) for n, c, _ in members]

    return edit(change_members)


def replace_array(extension, change, *, sample=1):
    def change_content(content):
        array = np.load(io.BytesIO(content))
        return encode_npy(change(array.copy()))

    return replace_member(extension, change_content, sample=sample)


def replace_json(change, *, sample=1):
    return replace_member(
        "json", lambda c: json.dumps(change(json.loads(c))).encode(), sample=sample
    )


def put(array, index, value):
    array[index] = value
    return array


def rename(old, new):
    return edit(lambda members: [(n.replace(old, new), c, None) for n, c, _ in members])


def reorder(order, **more):
    return edit(lambda members: [members[i] for i in order], **more)


def new_header(**fields):
    """A damage that gives one member another header."""

    def change(members):
        name, content, _ = members[4]
        info = tarfile.TarInfo.frombuf(render_header(name, len(content)), "utf-8", "strict")
        for key, value in fields.items():
            setattr(info, key, value)
        members[4] = (name, content, info.tobuf(tarfile.USTAR_FORMAT))
        return members

    return edit(change)


def gnu_header(members):
    name, content, header = members[4]
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    members[4] = (name, content, info.tobuf(tarfile.GNU_FORMAT))
    return members


def flip_bit(offset, name=SHARD):
    def damage(folder):
        data = bytearray((folder / name).read_bytes())
        data[offset] ^= 1
        (folder / name).write_bytes(data)

    return damage


def truncate(size):
    return lambda folder: os.truncate(folder / SHARD, size)


def truncate_sealed(size):
    def damage(folder):
        os.truncate(folder / SHARD, size)
        seal(folder)

    return damage


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


def write_index(change):
    def damage(folder):
        path = folder / f"{SHARD}.idx"
        path.write_bytes(change(path.read_bytes()))

    return damage


def edit_manifest(change):
    """A damage of the manifest's text."""

    def damage(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def edit_row(**changes):
    return lambda folder: seal(folder, **{k: v(row(folder)) for k, v in changes.items()})


def edit_tokenizer(**changes):
    def damage(folder):
        manifest = read_manifest(folder)
        tokenizer = Tokenizer(**{**dataclasses.asdict(manifest.tokenizer), **changes})
        write_manifest(dataclasses.replace(manifest, tokenizer=tokenizer), folder)

    return damage


def swap_chunk_tokens(shard):
    tokens = shard.chunks.tokens
    return dataclasses.replace(shard.chunks, tokens=(tokens[0] - 1, tokens[1] + 1, *tokens[2:]))


def copy_key_of_other_shard(folder):
    members = read_members(folder / SHARD)
    write_members(
        folder, [(n.replace("000001-000002", "000000-000002"), c, None) for n, c, _ in members]
    )


def without_tokenizer(tree):
    return {**tree, "tokenizer": None}


def shortened(extension):
    """Drop the member of one sample."""
    return edit(lambda members: [m for m in members if m[0] != f"train-000001-000001.{extension}"])


SIDECARS = ("config.yaml", "report.html", "report.json", "train.wids.json", "validation.wids.json")
RENDERED = (
    "train.wids.json",
    "validation.wids.json",
    ".nv-meta/.info.json",
    ".nv-meta/split.yaml",
    ".nv-meta/dataset.yaml",
)
READABLE = ("config.yaml", "report.html", "report.json", "README.md", *RENDERED)
MIDDLE = f"{SHARD}: train-000001-000001"
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
        [("manifest", "manifest.json", "is of kind 'banana', not text")],
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
    "rejects cut": (
        lambda folder: os.truncate(folder / "rejects" / "read.jsonl.gz", 50),
        [("sidecars", "rejects/read.jsonl.gz", "cannot be read behind line ")],
    ),
    "rejects that are no gzip file, no objects, none of ours": (
        lambda folder: [
            (folder / "rejects" / name).write_bytes(content)
            for name, content in [
                ("a.jsonl.gz", b"x"),
                ("b.jsonl.gz", gzip.compress(b"{}\n[]\n")),
                ("c.jsonl.gz", gzip.compress(b"{}\n{\n")),
                ("d.txt", b""),
            ]
        ],
        [
            ("sidecars", "rejects/a.jsonl.gz", "behind line 0: Not a gzipped file"),
            ("sidecars", "rejects/b.jsonl.gz", "behind line 1: is no object"),
            ("sidecars", "rejects/c.jsonl.gz", "behind line 1: "),
            ("files", "rejects/d.txt", "is no file of rejects"),
        ],
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
    "no tokenizer in the manifest": (
        edit_manifest(without_tokenizer),
        [
            ("files", "tokenizer.json", "does not name it"),
            ("tokenizer", "manifest.json", "names no tokenizer"),
        ],
    ),
    "bit in a content": (
        flip_bit(3 * 512 + 16),  # a digit of a key: still JSON
        [
            ("sha256", SHARD, "the manifest says"),
            ("crc32", f"{SHARD}: chunk 0", "in samples 0 to 0"),
        ],
    ),
    "bit in the last padding": (
        flip_bit(-1),
        [("sha256", SHARD, "the manifest says"), ("tar", SHARD, "data behind the end")],
    ),
    "cut inside a member": (
        truncate(4000),
        [
            ("bytes", SHARD, "has 4000 bytes, the manifest says 10240"),
            ("tar", SHARD, "cut off at byte 4000, inside of train-000001-000001.docs.npy"),
        ],
    ),
    "cut before its end, sealed": (
        truncate_sealed(9 * 1024 + 512),
        [("tar", SHARD, "ends at byte 9728")],
    ),
    "empty file, sealed": (
        truncate_sealed(0),
        [("crc32", "chunk 0", ""), ("crc32", "chunk 1", ""), ("crc32", "chunk 2", "")]
        + [("tar", SHARD, "cut off at byte 0")],
    ),
    "other time": (
        new_header(mtime=1),
        [("headers", f"{MIDDLE}.json", "mtime is 1, must be 0")],
    ),
    "other mode": (
        new_header(mode=0o644),
        [("headers", f"{MIDDLE}.json", "mode is 420, must be 292")],
    ),
    "other owner": (
        new_header(uname="root"),
        [("headers", f"{MIDDLE}.json", "uname is 'root', must be 'bigdata'")],
    ),
    "a link": (
        new_header(type=tarfile.SYMTYPE),
        [("headers", f"{MIDDLE}.json", "type is b'2', must be b'0'")],
    ),
    "GNU header": (
        edit(gnu_header),
        [("headers", f"{MIDDLE}.json", "magic and version are b'ustar  ")],
    ),
    "space in a name": (
        rename("train-000001-000001", "train 000001-000001"),
        [("names", "train 000001-000001", "key of")] * 3,
    ),
    "extension in capitals": (
        edit(
            lambda members: [
                (n.replace("01-000001.json", "01-000001.JSON"), c, None) for n, c, _ in members
            ]
        ),
        [
            ("names", f"{MIDDLE}.JSON", "lower-case"),
            ("sorted", MIDDLE, "has docs.npy, JSON, tokens.npy"),
            ("extensions", MIDDLE, "has JSON, docs.npy, tokens.npy; must have"),
        ],
    ),
    "members apart": (
        reorder([0, 1, 3, 4, 5, 2, 6, 7, 8]),
        [
            ("adjacent", f"{SHARD}: train-000001-000000", "tokens.npy lie apart"),
        ],
    ),
    "members in another order": (
        reorder([0, 1, 2, 5, 4, 3, 6, 7, 8]),
        [("sorted", MIDDLE, "has tokens.npy, json, docs.npy")],
    ),
    "member twice": (
        reorder([0, 1, 2, 3, 4, 4, 5, 6, 7, 8]),
        [("sorted", MIDDLE, "has docs.npy, json, json, tokens.npy")],
    ),
    "member missing": (
        shortened("json"),
        [("extensions", MIDDLE, "has docs.npy, tokens.npy; must have docs.npy, json, tokens.npy")],
    ),
    "sample too few in the manifest": (
        lambda folder: seal(
            folder,
            samples=2,
            chunks=dataclasses.replace(row(folder).chunks, samples=(1, 1, 0)),
        ),
        [("samples", SHARD, "holds 3 samples, the manifest says 2")],
    ),
    "no samples": (
        lambda folder: write_members(folder, []),
        [("samples", SHARD, "is empty")],
    ),
    "key twice in a shard": (
        reorder([6, 7, 8, *range(9)], more_tokens=20),
        [("keys", f"{SHARD}: train-000001-000002", "occurs twice")],
    ),
    "key of another shard": (
        copy_key_of_other_shard,
        [("keys", "train-000000.tar: train-000000-000002", f"train-000000.tar, {SHARD}")],
    ),
    "index cut short": (
        write_index(lambda data: data[:-8]),
        [("index", f"{SHARD}.idx", "has 24 bytes; 3 samples need 32")],
    ),
    "index with another offset": (
        write_index(lambda data: data[:8] + struct.pack("<Q", 512) + data[16:]),
        [("index", f"{SHARD}.idx", "entry 1 is 512, the tar says 3072")],
    ),
    "other crc32": (
        edit_row(chunks=lambda s: dataclasses.replace(s.chunks, crc32=(*s.chunks.crc32[:2], 0))),
        [("crc32", f"{SHARD}: chunk 2", "in samples 2 to 2")],
    ),
    "chunk with another first sample": (
        edit_row(chunks=lambda s: dataclasses.replace(s.chunks, first_sample=(0, 1, 1))),
        [("chunks", f"{SHARD}: chunk 2", "first_sample is 2, the manifest says 1")],
    ),
    "chunks with other tokens": (
        edit_row(chunks=swap_chunk_tokens),
        [
            ("chunks", f"{SHARD}: chunk 0", "tokens is 50, the manifest says 49"),
            ("chunks", f"{SHARD}: chunk 1", "tokens is 50, the manifest says 51"),
        ],
    ),
    "token outside of the vocabulary": (
        replace_array("tokens.npy", lambda tokens: put(tokens, 3, 9)),
        [("tokens", MIDDLE, "token 3 is 9; the vocabulary has 9 ids")],
    ),
    "tokens of another type": (
        replace_array("tokens.npy", lambda tokens: tokens.astype(np.uint32)),
        [("tokens", MIDDLE, "has type uint32, must have uint16")],
    ),
    "tokens of another shape": (
        replace_array("tokens.npy", lambda tokens: tokens.reshape(5, 10)),
        [("tokens", MIDDLE, "has shape (5, 10), must be flat")],
    ),
    "tokens cut": (
        replace_member("tokens.npy", lambda content: content[:-2]),
        [("tokens", MIDDLE, "holds 98 bytes of 50 items of 2")],
    ),
    "pickled objects": (
        replace_member("tokens.npy", lambda _: pickled()),
        [("tokens", MIDDLE, "has type object, must have uint16")],
    ),
    "no array": (
        replace_member("docs.npy", lambda _: b"PK\x03\x04"),
        [("docs", MIDDLE, "docs.npy: ")],
    ),
    "end of document inside a document": (
        replace_array("tokens.npy", lambda tokens: put(tokens, 3, 8)),
        [("docs", MIDDLE, "offset 4 is missing, and a document starts there")],
    ),
    "offset inside a document": (
        replace_array("docs.npy", lambda starts: put(starts, 0, 11)),
        [("docs", MIDDLE, "offset 10 is missing, and a document starts there")],
    ),
    "offset behind the block": (
        replace_array("docs.npy", lambda starts: np.append(starts, np.uint32(50))),
        [("docs", MIDDLE, "offset 50 is given, and no document starts there")],
    ),
    "offsets that descend": (
        replace_array("docs.npy", lambda starts: starts[::-1]),
        [("docs", MIDDLE, "do not ascend")],
    ),
    "first block begins inside a document": (
        replace_array("docs.npy", lambda starts: starts[1:], sample=0),
        [("docs", f"{SHARD}: train-000001-000000", "offset 0 is missing")],
    ),
    "last document without an end": (
        replace_array("tokens.npy", lambda tokens: put(tokens, -1, 0), sample=2),
        [("docs", f"{SHARD}: train-000001-000002", "the last document has no end")],
    ),
    "json cut": (
        replace_member("json", lambda content: content[:-1]),
        [("json", MIDDLE, "json: ")],
    ),
    "json of another form": (
        replace_json(lambda tree: {**tree, "more": 1}),
        [("json", MIDDLE, "must have the fields documents and tokens")],
    ),
    "json with other tokens": (
        replace_json(lambda tree: {**tree, "tokens": 51}),
        [("json", MIDDLE, "says 51 tokens, the block has 50")],
    ),
    "json with a document too few": (
        replace_json(lambda tree: {**tree, "documents": tree["documents"][1:]}),
        [("json", MIDDLE, "lists 2 documents, the block has 3")],
    ),
    "json with other keys": (
        replace_json(lambda tree: {**tree, "documents": ["x"] * 3}),
        [("json", MIDDLE, "16 hex digits")],
    ),
}


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


def test_whole_dataset_has_no_fault(dataset):
    assert verify(dataset) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named(dataset, name):
    damage, expected = DAMAGES[name]
    damage(dataset)
    faults = verify(dataset)
    found = [(fault.rule, fault.where, fault.message) for fault in faults]
    assert len(found) == len(expected), found
    for (rule, where, message), (its_rule, its_where, its_message) in zip(
        expected, found, strict=True
    ):
        assert rule == its_rule
        assert where in its_where
        assert message in its_message


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{}", b"[" * 10**6, b'{"model": null}'], ids=range(5)
)
def test_a_sealed_tokenizer_that_is_none(dataset, content):
    (dataset / "tokenizer.json").write_bytes(content)
    edit_tokenizer(sha256=hashlib.sha256(content).hexdigest())(dataset)
    (fault,) = verify(dataset)
    assert (fault.rule, fault.where) == ("tokenizer", "tokenizer.json")
    assert "cannot be read: " in fault.message


def test_a_tokenizer_without_tokens(dataset):
    path = dataset / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"], tree["model"]["merges"], tree["added_tokens"] = {}, [], []
    path.write_text(json.dumps(tree))
    edit_tokenizer(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(dataset)
    assert [fault.message.partition(",")[0] for fault in verify(dataset)] == [
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
def test_a_dataset_has_a_train_shard(dataset, splits, message):
    write_manifest(dataclasses.replace(read_manifest(dataset), splits=splits), dataset)
    found = [fault.message for fault in verify(dataset) if fault.rule == "manifest"]
    assert "lists no shard of 'train'" in found
    assert message in found


def test_every_rule_has_a_damage():
    assert {rule for _, expected in DAMAGES.values() for rule, *_ in expected} == set(RULES)


def test_files_of_others_are_allowed(dataset):
    for name in ("train-000000.idx", ".lock", ".nv-meta/index.sqlite"):
        add(name)(dataset)
    (dataset / "README.md").unlink()
    assert verify(dataset) == []


def run_verb(capsys, *argv):
    with pytest.raises(SystemExit) as exit_code:
        main([str(word) for word in argv])
    return exit_code.value.code, capsys.readouterr().out


def test_table_of_a_whole_dataset(dataset, capsys):
    code, out = run_verb(capsys, dataset)
    assert code == 0
    assert "no fault" in out
    for rule in RULES:
        assert f"{rule}:" in out


def test_table_of_names_that_are_no_text(dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    edit_manifest(lambda t: {**t, "tokenizer": {**t["tokenizer"], "sha256": "\ud800"}})(dataset)
    (dataset / os.fsdecode(b"a\xff")).write_bytes(b"")
    code, out = run_verb(capsys, dataset)
    assert code == 1
    assert "ud800" in out
    assert "udcff" in out


def test_table_shows_the_first_faults(dataset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for index in range(EXAMPLES + 2):
        add(f"extra-{index}")(dataset)
    code, out = run_verb(capsys, dataset)
    assert code == 1
    assert "5 faults" in out
    assert [f"extra-{index}: is not" in out for index in range(5)] == [True] * 3 + [False] * 2
    assert "and 2 more" in out
    _, out = run_verb(capsys, dataset, "--all")
    assert "extra-4: is not" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda _: None, 0),
        (remove(SHARD), 1),
        (replace_file(SHARD, lambda path: path.symlink_to("/nonexistent/blob")), 1),
        (edit_manifest(lambda tree: {**tree, "splits": {"train": [None]}}), 1),
        (remove("manifest.json"), 2),
    ],
)
def test_exit_code_of_the_verb(dataset, damage, code):
    damage(dataset)
    command = [sys.executable, "-m", "pipeline.verify", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("no manifest.json, so no complete dataset" in done.stderr) == (code == 2)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damaged_byte_is_found(dataset, data):
    """Also bytes of headers and arrays that no longer parse: a fault, never a crash."""
    path = dataset / SHARD
    whole = path.read_bytes()
    used = 9216 + 1024  # three samples of three members, and the end
    at = data.draw(st.integers(0, used - 1))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    path.write_bytes(damaged)
    try:
        unsealed = {fault.rule for fault in verify(dataset)}
        seal(dataset)  # a manifest made of damaged tars: the contents must be read without a crash
        verify(dataset)
    finally:
        path.write_bytes(whole)
        seal(dataset)
    assert "sha256" in unsealed
