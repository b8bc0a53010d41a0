import hashlib
import io
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tar
from pipeline.tar import Sample, encode_npy, index_path, name_fault, scan, write_shard


def samples(sizes, key="train-000000"):
    return [
        Sample(f"{key}-{i:06d}", {"json": b"{}", "bin": bytes([i % 251]) * size}, tokens=size)
        for i, size in enumerate(sizes)
    ]


@pytest.mark.slow
def test_bytes_are_those_of_webdatasets_writer(tmp_path):
    from webdataset.writer import TarWriter

    given = samples([0, 1, 511, 512, 513, 100_000])
    with TarWriter(str(tmp_path / "reference.tar"), mtime=0, encoder=False) as writer:
        for sample in given:
            writer.write({"__key__": sample.key, **sample.files})
    write_shard(tmp_path / "ours.tar", given)
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "reference.tar").read_bytes()


def test_row_of_the_manifest(tmp_path):
    shard = write_shard(tmp_path / "a.tar", samples([10, 20, 3000, 40]), chunk_bytes=4096)
    data = (tmp_path / "a.tar").read_bytes()
    # two members of header and padded content each: 2,048 bytes a sample, 4,608 for the third
    assert shard.chunks.start == (0, 4096, 8704)
    assert shard.chunks.stop == (4096, 8704, 10752)
    assert shard.chunks.first_sample == (0, 2, 3)
    assert shard.chunks.samples == (2, 1, 1)
    assert shard.chunks.tokens == (30, 3000, 40)
    assert shard.chunks.crc32 == tuple(
        zlib.crc32(data[a:b]) for a, b in zip(shard.chunks.start, shard.chunks.stop, strict=True)
    )
    assert (shard.name, shard.samples, shard.tokens) == ("a.tar", 4, 3070)
    assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12), chunk=st.integers(1, 20_000))
def test_chunks_are_whole_samples_without_a_gap(tmp_path_factory, sizes, chunk):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    shard = write_shard(path, samples(sizes), chunk_bytes=chunk)
    offsets = struct.unpack(f"<{len(sizes) + 1}Q", index_path(path).read_bytes())
    chunks = shard.chunks
    assert chunks.start == tuple(offsets[first] for first in chunks.first_sample)
    assert chunks.stop == (*chunks.start[1:], offsets[-1])
    assert chunks.first_sample == tuple(np.cumsum((0, *chunks.samples[:-1])).tolist())
    for start, stop, count in zip(chunks.start, chunks.stop, chunks.samples, strict=True):
        assert count == 1 or stop - start <= chunk


def test_index_holds_first_headers_and_the_end(tmp_path):
    write_shard(tmp_path / "a.tar", samples([0, 513, 5]))
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
        expected = [m.offset for m in members if m.name.endswith(".bin")]
    end = members[-1].offset_data + 512  # behind the padding of the last 2 bytes of JSON
    index = struct.unpack("<4Q", (tmp_path / "a.tar.idx").read_bytes())
    assert index == (*expected, end)


def test_scan_finds_what_was_written(tmp_path):
    path = tmp_path / "a.tar"
    given = samples([7, 600])
    write_shard(path, given)
    found = [
        (m.key, m.extension, path.read_bytes()[m.start : m.start + m.size], m.offset, m.stop)
        for m in scan(path)
    ]
    assert found == [
        ("train-000000-000000", "bin", given[0].files["bin"], 0, 1024),
        ("train-000000-000000", "json", b"{}", 1024, 2048),
        ("train-000000-000001", "bin", given[1].files["bin"], 2048, 3584),
        ("train-000000-000001", "json", b"{}", 3584, 4608),
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:1000], "cut off at byte 1000, inside of .*000000.bin"),
        (lambda data: data[:2048], "cut off at byte 2048: no end"),
        (lambda data: data[:2048] + bytes(512), "ends at byte 2560; .* give 10240"),
        (lambda data: data + bytes(10240), "ends at byte 20480; .* give 10240"),
        (lambda data: data[:-1] + b"x", "data behind the end of the archive at byte 2048"),
        (lambda data: b"x" + data[1:], "damaged header at byte 0: bad checksum"),
        (lambda data: negative_size() + data[512:], "damaged header at byte 0: size -1024"),
    ],
)
def test_scan_names_the_damage(tmp_path, damage, message):
    path = tmp_path / "a.tar"
    path.write_bytes(damage(tar_of_two_blocks()))
    with pytest.raises(ValueError, match=message):
        list(scan(path))


def negative_size():
    """A header that sends a reader backwards for ever."""
    info = tarfile.TarInfo("train-000000-000000.bin")
    info.size = -1024
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_of_two_blocks():
    headers = [tar.render_header(f"train-000000-000000.{ext}", 1) for ext in ("bin", "json")]
    body = b"".join(header + b"x" + bytes(511) for header in headers)
    return body + bytes(10240 - len(body))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no such advice")
def test_writing_begins_before_the_end(tmp_path, monkeypatch):
    """Each byte but the last few is sent on its way once, in order."""
    sent, advise = [], os.posix_fadvise
    monkeypatch.setattr(
        os, "posix_fadvise", lambda *words: (sent.append(words[1:]), advise(*words))
    )
    shard = write_shard(tmp_path / "a.tar", samples([3 * 2**20] * 7))
    data = (tmp_path / "a.tar").read_bytes()
    assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    ends = [start + size for start, size, _ in sent]
    assert [start for start, _, _ in sent] == [0, *ends[:-1]]
    assert len(sent) == 2
    assert all(size >= tar.WRITEBACK for _, size, _ in sent)
    assert shard.bytes - ends[-1] < tar.WRITEBACK


def test_nothing_remains_of_a_failed_write(tmp_path):
    def failing():
        yield from samples([5])
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.tar", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "without samples"),
        ([*samples([1]), *samples([2])], "'train-000000-000000' is given twice"),
        ([*samples([1]), Sample("b", {"json": b""})], "'b' has members json; .* has bin, json"),
    ],
)
def test_refuses_shards_that_some_reader_does_not_take(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "a.tar", given)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("train-000003-000017.tokens.npy", ""),
        ("A_b-1.source_docs.npy", ""),
        ("a" * 95 + ".json", ""),
        ("a" * 96 + ".json", "longer than 100 bytes"),
        ("a b.json", "key of"),
        ("a/b.json", "key of"),
        ("é.json", "key of"),
        ("__meta__.json", "key of"),
        (".hidden", "key of"),
        ("a", "extension of"),
        ("a.", "extension of"),
        ("a.JPG", "extension of"),
        ("a.b[0]", "extension of"),
        ("a..json", "extension of"),
        ("a.json\n", "extension of"),
    ],
)
def test_names(name, fault):
    found = name_fault(name)
    assert fault in found
    assert bool(found) == bool(fault)


def test_sample_refuses_bad_names_and_no_members():
    with pytest.raises(ValueError, match=r"key of 'a/b.json'"):
        Sample("a/b", {"json": b""})
    with pytest.raises(ValueError, match="no members"):
        Sample("a", {})


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_npy_is_what_numpy_saves(dtype):
    array = np.arange(1000, dtype=dtype)[::3]
    file = io.BytesIO()
    np.save(file, array)
    assert encode_npy(array) == file.getvalue()
    assert np.array_equal(np.load(io.BytesIO(encode_npy(array)), allow_pickle=False), array)
