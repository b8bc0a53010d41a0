"""Archives of images: each member in its place, and what a damaged archive still gives."""

import gzip
import io
import json
import logging
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from pipeline.corpus import Portion, list_files
from pipeline.readers import image_archive

MIB = 1 << 20
REAL = Path(__file__).resolve().parents[4] / "shared/data/images"
FILES = {
    "train/cat/1.jpg": b"cat 1",
    "train/cat/notes.md": b"no image",
    "train/dog/2.PNG": b"dog 2",
    "train/dog/.hidden.png": b"hidden",
    "test/cat/3.webp": b"cat 3",
}


def tar_of(files, extra=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry in extra:
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_bytes_of_a_name_that_are_not_utf8_are_escaped(tmp_path):
    names = (b"caf\xe9/1.png", b"caf\xe8/1.png", "café/1.png".encode())
    files = {name.decode("utf-8", "surrogateescape"): name for name in names}
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    found = [json.loads(row[-1]) for row in rows(read(tmp_path / "a.tar", keep_name=True))]
    expected = [r"caf\xe9/1.png", r"caf\xe8/1.png", "café/1.png"]
    assert [one["file"] for one in found] == expected


def zip_of(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def read(path, **fields):
    config = image_archive.Config(path=(str(path),), **fields)
    (file,) = list_files(config.path, image_archive.EXTENSIONS)
    ((start, stop, size),) = image_archive.cut(file, config)
    batches = list(image_archive.read(Portion(0, file, start, stop, size), config))
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert sum(batch.read_bytes for batch in batches) == file.bytes
    return batches


def rows(batches):
    found = [row for batch in batches for row in batch.documents.to_pylist()]
    return [tuple(row.values())[1:6] for row in found]


def rejects(batches):
    found = [row for batch in batches for row in batch.rejects.to_pylist()]
    return [(row["reason"], row["position"], row["bytes"]) for row in found]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tar", tar_of),
        ("a.tar.gz", lambda files: gzip.compress(tar_of(files))),
        ("a.tgz", lambda files: gzip.compress(tar_of(files))),
        ("a.tar.zst", lambda files: zstandard.compress(tar_of(files))),
        ("a.zip", zip_of),
    ],
)
def test_members_with_class_and_name(tmp_path, caplog, name, make):
    (tmp_path / name).write_bytes(make(FILES))
    with caplog.at_level(logging.INFO):
        batches = read(tmp_path / name, classes=True, keep_name=True)
    assert rows(batches) == [
        (0, b"cat 1", "cat", None, '{"file":"train/cat/1.jpg"}'),
        (2, b"dog 2", "dog", None, '{"file":"train/dog/2.PNG"}'),
        (4, b"cat 3", "cat", None, '{"file":"test/cat/3.webp"}'),
    ]
    assert rejects(batches) == []
    assert batches[0].documents.column("source").to_pylist() == [name] * 3
    names = ["train/cat/1.jpg", "train/dog/2.PNG", "test/cat/3.webp"]
    assert batches[0].documents.column("name").to_pylist() == names
    assert caplog.messages == [f"{name}: 2 members are no images and are passed over"]


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_include_reads_a_part(tmp_path, make):
    path = tmp_path / ("a.zip" if make is zip_of else "a.tar")
    path.write_bytes(make({f"./{name}": content for name, content in FILES.items()}))
    assert rows(read(path, include="test/*")) == [(4, b"cat 3", None, None, None)]


def test_links_and_devices_are_passed_over(tmp_path):
    special = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        entry = tarfile.TarInfo("x.png")
        entry.type, entry.linkname = kind, "/etc/passwd"
        special.append(entry)
    (tmp_path / "a.tar").write_bytes(tar_of({"../../y.png": b"y"}, special))
    before = sorted(tmp_path.parent.rglob("*"))
    assert rows(read(tmp_path / "a.tar", keep_name=True)) == []
    (tmp_path / "a.tar").write_bytes(tar_of({"/y.png": b"y"}, special))
    batches = read(tmp_path / "a.tar", keep_name=True)
    assert rows(batches) == [(4, b"y", None, None, '{"file":"/y.png"}')]
    assert sorted(tmp_path.parent.rglob("*")) == before
    link = zipfile.ZipInfo("l.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("y.png", b"y")
    assert rows(read(tmp_path / "b.zip")) == [(1, b"y", None, None, None)]


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_large_empty_and_classless_members(tmp_path, make):
    path = tmp_path / ("a.zip" if make is zip_of else "a.tar")
    files = {"c/0.png": b"", "c/1.png": bytes(40 * MIB), "2.png": b"2", "c/3.png": b"3"}
    path.write_bytes(make(files))
    batches = read(path, classes=True, max_record_mib=1)
    assert rows(batches) == [(3, b"3", "c", None, None)]
    assert rejects(batches) == [
        ("empty_file", 0, 0),
        ("record_too_large", 1, 40 * MIB),
        ("missing_class", 2, 1),
    ]


@pytest.mark.parametrize("stop", [3 * 1024 + 512, 3 * 1024 + 700, 3 * 1024 + 200, 3 * 1024])
def test_truncated_tar_keeps_what_came_before(tmp_path, stop):
    whole = tar_of({f"{number}.png": b"%d" % number for number in range(9)})
    (tmp_path / "a.tar").write_bytes(whole[:stop])
    batches = read(tmp_path / "a.tar")
    complete = [(number, b"%d" % number, None, None, None) for number in range(3)]
    assert rows(batches)[:3] == complete
    assert len(rows(batches)) == 3 + (stop == 3 * 1024 + 700)
    assert [reject[0] for reject in rejects(batches)] == ["truncated_file"]


def test_broken_header_is_not_the_end(tmp_path):
    whole = bytearray(tar_of({f"{number}.png": b"%d" % number for number in range(9)}))
    whole[2 * 1024 : 2 * 1024 + 512] = b"\xff" * 512
    (tmp_path / "a.tar").write_bytes(whole)
    batches = read(tmp_path / "a.tar")
    assert [row[1] for row in rows(batches)] == [b"0", b"1"]
    assert rejects(batches) == [("truncated_file", 2, len(whole) - 2 * 1024)]


def test_truncated_gz(tmp_path):
    files = {f"{number}.png": b"%d" % number**40 for number in range(2000)}
    whole = gzip.compress(tar_of(files))
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    batches = read(tmp_path / "a.tgz")
    found = [row[1] for row in rows(batches)]
    assert found == [b"%d" % number**40 for number in range(len(found))]
    assert 500 < len(found) < 1500
    assert [reject[:2] for reject in rejects(batches)] == [("truncated_file", len(found))]


def test_damaged_zips(tmp_path):
    whole = zip_of({"a.png": b"a" * 1000, "b.png": b"b"})
    for stop in (len(whole) - 30, len(whole) - 1, 100):  # the directory at its end is cut
        (tmp_path / "a.zip").write_bytes(whole[:stop])
        batches = read(tmp_path / "a.zip")
        assert rejects(batches) == [("truncated_file", 0, stop)]
        (detail,) = batches[0].rejects.column("detail").to_pylist()
        assert detail.startswith("no directory at its end, so nothing of it can be read: ")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", b"stored a")
        archive.writestr("b.png", b"b")
    (tmp_path / "a.zip").write_bytes(out.getvalue().replace(b"stored a", b"stored x"))
    batches = read(tmp_path / "a.zip")
    assert rows(batches) == [(1, b"b", None, None, None)]
    assert rejects(batches) == [("unreadable_file", 0, 8)]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
@pytest.mark.parametrize(("content", "reason"), [(b"", "empty_file"), (b"x", "unreadable_file")])
def test_no_archive(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content * 3000)
    batches = read(tmp_path / name)
    assert rejects(batches) == [(reason, 0, len(content) * 3000)]
    assert rows(batches) == []


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def test_cifar10_test_set():
    batches = read(real("cifar10/cifar10_test.tar.gz"), classes=True, include="test/*")
    found = rows(batches)
    assert sorted(Counter(row[2] for row in found).values()) == [1000] * 10
    assert all(row[1].startswith(b"\xff\xd8") for row in found)
    assert [row[0] for row in found] == sorted({row[0] for row in found})
    assert rejects(batches) == []


def test_imagenet_sample():
    found = rows(read(real("imagenet_sample/imagenet_sample_250.tar"), keep_name=True))
    assert len({row[4] for row in found}) == len(found) == 250
