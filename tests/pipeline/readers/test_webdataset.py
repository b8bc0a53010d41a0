"""WebDataset tars: samples as webdataset groups them, and what is none refused."""

import gzip
import io
import json
import logging
import tarfile

import numpy as np
import pytest
import webdataset
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import Portion, list_files, plan_portions
from pipeline.images.class_names import read_class_names
from pipeline.images.tar_samples import split_name
from pipeline.readers import webdataset as reader

COLUMNS = ("position", "image", "class", "caption", "metadata", "name")


def tar_of(files):
    """A tar of (name, content) pairs, names as often as they are given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def read(path, **fields):
    config = reader.Config(path=(str(path),), **fields)
    (file,) = list_files(config.path, reader.EXTENSIONS)
    ((start, stop, size),) = reader.cut(file, config)
    batches = list(reader.read(Portion(0, file, start, stop, size), config))
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert sum(batch.read_bytes for batch in batches) == file.bytes
    return batches


def rows(batches):
    found = [row for batch in batches for row in batch.documents.to_pylist()]
    return [tuple(row[name] for name in COLUMNS) for row in found]


def rejects(batches):
    found = [row for batch in batches for row in batch.rejects.to_pylist()]
    return [(row["reason"], row["position"], row["bytes"], row["detail"]) for row in found]


def refused(tmp_path, files, **fields):
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    batches = read(tmp_path / "a.tar", **fields)
    return [row[1] for row in rows(batches)], rejects(batches)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.tar", bytes), ("a.tgz", gzip.compress), ("a.tar.zst", zstandard.compress)],
)
def test_what_webdataset_writes(tmp_path, caplog, name, pack):
    """Keys with folders and dots in them, nested extensions, a class, a caption, metadata."""
    stored = [
        {
            "__key__": f"v1.5/{number % 2}/{number:06d}",
            ["jpg", "PNG", "jpeg"][number % 3]: b"image %d" % number,
            "seg.png": b"mask",
            "cls": number,
            "caption": f" café {number}\n",
            "json": {"url": f"http://x/{number}", "score": [number / 3, None]},
            "box.json": [[1, 2], [3, number]],
            "source": "camera",
            "npy": np.arange(number),
        }
        for number in range(9)
    ]
    out = io.BytesIO()
    with webdataset.TarWriter(out) as writer:
        for sample in stored:
            writer.write(sample)
    (tmp_path / name).write_bytes(pack(out.getvalue()))
    asked = {
        "class_member": "cls",
        "caption_member": "caption",
        "metadata_members": ("json", "box.json", "source"),
        "keep_key": True,
    }
    with caplog.at_level(logging.INFO):
        batches = read(tmp_path / name, **asked)
    expected = []
    for number, sample in enumerate(stored):
        (image,) = sample.keys() & {"jpg", "PNG", "jpeg"}
        key = sample["__key__"]
        told = {"box.json": sample["box.json"], "source": "camera", "key": key}
        metadata = json.dumps(sample["json"] | told, sort_keys=True, separators=(",", ":"))
        said = (str(number), f"café {number}", metadata, f"{key}.{image}")
        expected.append((8 * number, sample[image], *said))
    assert rows(batches) == expected
    assert rejects(batches) == []
    assert caplog.messages == [f"{name}: members that are passed over: 9 npy, 9 seg.png"]


NAMES = st.tuples(
    st.sampled_from(["", "./", "f/", "f.g/"]),
    st.sampled_from(["a", "b", "", "__m__"]),
    st.sampled_from(["", ".jpg", ".txt", ".seg.png", ".JPG"]),
).map("".join)


@given(st.lists(NAMES.filter(lambda name: name and "/." not in name), max_size=8))
def test_any_tar_is_grouped_as_by_webdataset_and_no_byte_vanishes(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("any") / "a.tar"
    files = [(name, b"%d" % number) for number, name in enumerate(names, 10)]
    path.write_bytes(tar_of(files))
    with path.open("rb") as file:
        members = webdataset.tariterators.tar_file_expander([{"url": "", "stream": file}])
        groups = list(webdataset.tariterators.group_by_keys(members, handler=lambda _: True))
    by_image = {group["jpg"]: group for group in groups if "jpg" in group}
    batches = read(path, caption_member="txt", metadata_members=())
    found = rows(batches)
    assert [row[3] for row in found] == [by_image[row[1]]["txt"].decode() for row in found]
    kept = [by_image[row[1]][name] for row in found for name in ("jpg", "txt", "seg.png")
            if name in by_image[row[1]]]  # fmt: skip
    keyed = sum(len(content) for name, content in files if split_name(name))
    assert len(b"".join(kept)) + sum(row[2] for row in rejects(batches)) == keyed


def test_names():
    for name in ("a/b.c/1.seg.PNG", "./1.jpg", "1", ".hidden.jpg", "a.b/c", "1.", "/1.a"):
        key, extension = webdataset.tariterators.base_plus_ext(name)
        assert split_name(name) == (None if key is None else (key, extension.lower()))
    assert split_name("a/._1.jpg") is None  # of macOS; webdataset takes `a/` for its key
    assert split_name("__meta__/1.jpg") is None


FINE = [("0.jpg", b"fine 0"), ("0.txt", b"zero")]


@pytest.mark.parametrize(
    ("files", "reason", "detail"),
    [
        (
            [("1.txt", b"one"), ("1.json", b"{}")],
            "missing_image",
            "; has txt, json; see",
        ),
        ([("1.jpg", b"i"), ("1.png", b"j"), ("1.txt", b"t")], "several_images", "jpg, png, txt"),
        ([("1.jpg", b"i"), ("1.jpg", b"j"), ("1.txt", b"t")], "duplicate_key", "two members jpg"),
        ([("1.jpg", b"i"), ("1.JPG", b"j"), ("1.txt", b"t")], "duplicate_key", "two members jpg"),
        ([("0.jpg", b"i"), ("0.txt", b"t")], "duplicate_key", "0: has two members txt"),
        ([("1.jpg", b""), ("1.txt", b"t")], "empty_file", "1: 1.jpg: 0 bytes"),
        ([("1.jpg", bytes(2 << 20)), ("1.txt", b"t")], "record_too_large", "1.jpg: a member of"),
        ([("1.jpg", b"i"), ("1.txt", bytes(2 << 20))], "record_too_large", "1.txt: a member of"),
        ([("1.jpg", b"i")], "missing_caption", "no txt; has jpg"),
        ([("1.jpg", b"i"), ("1.txt", b"\xff")], "invalid_utf8", "txt: invalid start byte"),
        ([("1.jpg", b"i"), ("1.txt", b"t"), ("1.json", b"{")], "invalid_json", "json: Expecting"),
        ([("1.jpg", b"i"), ("1.txt", b"t"), ("1.json", b'"\\ud800"')], "invalid_json", "surrog"),
        (
            [("1.jpg", b"i"), ("1.txt", b"t"), ("1.json", b"[" * 500 + b"]" * 500)],
            "invalid_json",
            "nested more than 100 deep",
        ),
        (
            [("1.jpg", b"i"), ("1.txt", b"t"), ("1.json", b"[" * 10**5 + b"]" * 10**5)],
            "invalid_json",
            "recursion",
        ),
    ],
)
def test_samples_that_are_none(tmp_path, files, reason, detail):
    """Each is one reject with the bytes of all its members; its neighbours stay."""
    first = [] if files[0][0] == "0.jpg" else FINE
    others = [*FINE, *files] if not first else files
    expected = [b"fine 2"] if not first else [b"fine 0", b"fine 2"]
    files = [*first, *others, ("2.jpg", b"fine 2"), ("2.txt", b"two")]
    found, bad = refused(tmp_path, files, caption_member="txt", max_record_mib=1)
    assert found == expected
    ((its_reason, position, size, its_detail),) = bad
    assert (its_reason, position) == (reason, len(first))
    assert size == sum(len(content) for _, content in others)
    assert detail in its_detail


def test_members_out_of_place(tmp_path):
    """Images first, captions behind: nothing is a sample, and the bytes of all are told."""
    files = [("0.jpg", b"i0"), ("1.jpg", b"i1"), ("0.txt", b"t0"), ("1.txt", b"t1")]
    found, bad = refused(tmp_path, files, caption_member="txt")
    assert found == []
    assert [row[:3] for row in bad] == [
        ("missing_caption", 0, 2),
        ("missing_caption", 1, 2),
        ("duplicate_key", 2, 2),
        ("duplicate_key", 3, 2),
    ]
    assert bad[2][3] == "0: txt stand apart from earlier members of the same key"


@pytest.mark.parametrize("behind", [1, 2, 3])
def test_a_truncated_tar_loses_the_sample_in_which_it_breaks_off(tmp_path, behind):
    """Behind the image, the caption or the metadata: what may be missing is not known."""
    files = [(f"{number}.{name}", b"{}") for number in range(3) for name in ("jpg", "txt", "json")]
    whole = tar_of(files)
    stop = 1024 * (3 + behind) + 200
    (tmp_path / "a.tar").write_bytes(whole[:stop])
    batches = read(tmp_path / "a.tar", caption_member="txt")
    assert [row[0] for row in rows(batches)] == [0]
    has = ", ".join(["jpg", "txt", "json"][:behind])
    assert rejects(batches) == [
        ("incomplete_sample", 3, 2 * behind, f"1: the tar breaks off behind {has}"),
        ("truncated_file", 3 + behind, 200, "truncated header"),
    ]


def test_class_names(tmp_path):
    files = [(f"{number}.{name}", b"%d" % number) for number in range(4) for name in ("jpg", "cls")]
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    lines, manifest = tmp_path / "names.txt", tmp_path / "manifest.json"
    lines.write_text("zebra\nape\n an emu \n")
    manifest.write_text('{"classes": ["zebra", "ape", "an emu"], "format": 1}')
    for path in (lines, manifest):
        batches = read(tmp_path / "a.tar", class_member="cls", class_names=str(path))
        assert [row[2] for row in rows(batches)] == ["zebra", "ape", "an emu"]
        ((reason, position, _, detail),) = rejects(batches)
        assert (reason, position) == ("missing_class", 6)
        assert detail == f"3: cls holds '3', no number below 3, the classes of {path}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", " \n", "names no classes"),
        ("n.txt", "a\n\nb", "empty, or there twice"),
        ("n.txt", "a\na", "empty, or there twice"),
        ("n.json", '{"labels": []}', "no list of names"),
        ("n.json", "{", "Expecting"),
    ],
)
def test_class_names_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_class_names(str(tmp_path / name))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a.tar: 0: none of jpg, .*; has rgb.jpg, txt; see corpus.image_members"),
        ({"image_members": ("rgb.jpg",), "caption_member": "caption"}, "0: no caption; has rgb"),
        ({"image_members": ("rgb.jpg",), "class_member": "cls"}, "0: no cls, or nothing in it"),
    ],
)
def test_a_wrong_name_fails_before_the_build(tmp_path, fields, message):
    (tmp_path / "a.tar").write_bytes(tar_of([("0.rgb.jpg", b"i"), ("0.txt", b"t")]))
    with pytest.raises(ValueError, match=message):
        plan_portions(reader, reader.Config(path=(str(tmp_path),), **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": "names.txt"}, "class_member is empty"),
        ({"caption_member": ".txt"}, "'.txt': an extension has no dot in front"),
        ({"image_members": ("PNG",)}, "'PNG': an extension has .* no capitals"),
        ({"caption_member": "json"}, "'json': a member has one use"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(ValueError, match=message):
        reader.Config(path=("x",), **fields)
