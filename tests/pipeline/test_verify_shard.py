"""Damage inside of a shard, of its index and of its row of the manifest."""

import dataclasses
import hashlib
import json
import os
import struct
import tarfile
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.index import write_sidecars
from pipeline.manifest import Chunks, read_manifest, write_manifest
from pipeline.report import write_report
from pipeline.tar import index_path, render_header, scan
from pipeline.verify import verify
from pipeline.verify_shard import RULES

SHARD = "train-000001.tar"


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
    write_report(agreeing(json.loads((folder / "report.json").read_text()), manifest), folder)


def agreeing(report, manifest):
    """The report with the numbers of the manifest."""
    for split, shards in manifest.splits.items():
        for row in report["shards"]:
            shard = next((shard for shard in shards if shard.name == row["name"]), None)
            if shard is not None:
                row |= {name: getattr(shard, name) for name in ("samples", "tokens", "bytes")}
        for name in ("tokens", "bytes"):
            report["splits"][split][name] = sum(getattr(shard, name) for shard in shards)
    return report


def edit(change, **more):
    """A damage that changes the list of members, with everything else made to agree."""

    def damage(folder):
        write_members(folder, change(read_members(folder / SHARD)), **more)

    return damage


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


def write_index(change):
    def damage(folder):
        path = folder / f"{SHARD}.idx"
        path.write_bytes(change(path.read_bytes()))

    return damage


def edit_row(**changes):
    return lambda folder: seal(folder, **{k: v(row(folder)) for k, v in changes.items()})


def swap_chunk_tokens(shard):
    tokens = shard.chunks.tokens
    return dataclasses.replace(shard.chunks, tokens=(tokens[0] - 1, tokens[1] + 1, *tokens[2:]))


def copy_key_of_other_shard(folder):
    members = read_members(folder / SHARD)
    write_members(
        folder, [(n.replace("000001-000002", "000000-000002"), c, None) for n, c, _ in members]
    )


def shortened(extension):
    """Drop the member of one sample."""
    return edit(lambda members: [m for m in members if m[0] != f"train-000001-000001.{extension}"])


MIDDLE = f"{SHARD}: train-000001-000001"
DAMAGES = {
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
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named(text_dataset, damage, name):
    damage(text_dataset, *DAMAGES[name])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damaged_byte_is_found(text_dataset, data):
    """Also bytes of headers and arrays that no longer parse: a fault, never a crash."""
    path = text_dataset / SHARD
    whole = path.read_bytes()
    used = 9216 + 1024  # three samples of three members, and the end
    at = data.draw(st.integers(0, used - 1))
    damaged = bytearray(whole)
    damaged[at] = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    path.write_bytes(damaged)
    try:
        unsealed = {fault.rule for fault in verify(text_dataset)}
        seal(text_dataset)  # of damaged tars: the contents must be read without a crash
        verify(text_dataset)
    finally:
        path.write_bytes(whole)
        seal(text_dataset)
    assert "sha256" in unsealed


def test_every_rule_has_a_damage():
    rules = {rule for _, expected in DAMAGES.values() for rule, *_ in expected}
    assert rules == {*RULES, "keys"}
