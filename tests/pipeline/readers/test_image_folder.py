"""Image folders: every file a row or a reject, in the order of the listing."""

import io

import PIL.Image
import pytest

from pipeline import corpus
from pipeline.batch import Batch
from pipeline.images.rows import IMAGES
from pipeline.readers import image_folder

MIB = 1 << 20


def encoded(color, format="PNG"):
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), color).save(file, format)
    return file.getvalue()


def read(path, **fields) -> list[Batch]:
    config = image_folder.Config(path=(str(path),), **fields)
    files = corpus.list_files(config.path, image_folder.EXTENSIONS)
    (portion,) = corpus._group_files(files, 64 * MIB)
    batches = list(image_folder.read(portion, config))
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert sum(batch.read_bytes for batch in batches) == sum(file.bytes for file in files)
    assert all(batch.documents.schema == IMAGES for batch in batches)
    return batches


def rows(batches):
    found = [row for batch in batches for row in batch.documents.to_pylist()]
    return [tuple(row.values())[:6] for row in found]


def rejects(batches):
    found = [row for batch in batches for row in batch.rejects.to_pylist()]
    assert {row["stage"] for row in found} <= {"read"}
    return [(row["reason"], row["source"], row["position"], row["bytes"]) for row in found]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_class_is_the_folder_that_directly_holds_the_image(tmp_path):
    cat, dog = encoded("red"), encoded("blue", "JPEG")
    write(tmp_path, {"train/dog/a.JPEG": dog, "train/cat/z.png": cat, "train/cat/n.md": b"x"})
    batches = read(tmp_path, classes=True, keep_name=True)
    assert rows(batches) == [
        ("train/cat/z.png", 0, cat, "cat", None, '{"file":"train/cat/z.png"}'),
        ("train/dog/a.JPEG", 0, dog, "dog", None, '{"file":"train/dog/a.JPEG"}'),
    ]
    assert rejects(batches) == []
    count = batches[0].counts[0]
    size = len(cat) + len(dog)
    assert (count.records_in, count.bytes_in, count.records_out, count.bytes_out) == (
        (2, size, 2, size)
    )


def test_flat_folder_has_no_classes_nor_names(tmp_path):
    write(tmp_path, {"b.png": b"2", "a.webp": b"1", "sub/c.gif": b"3"})
    assert rows(read(tmp_path)) == [
        ("a.webp", 0, b"1", None, None, None),
        ("b.png", 0, b"2", None, None, None),
        ("sub/c.gif", 0, b"3", None, None, None),
    ]


def test_captions_stand_beside(tmp_path):
    write(tmp_path, {"a.png": b"1", "a.txt": "\ufeffein Häschen\n".encode()})
    write(tmp_path, {"b.png": b"22", "c.png": b"3", "c.txt": b"\xff"})
    batches = read(tmp_path, caption_extension=".txt")
    assert rows(batches) == [("a.png", 0, b"1", None, "ein Häschen", None)]
    assert rejects(batches) == [("missing_caption", "b.png", 0, 2), ("invalid_utf8", "c.png", 0, 1)]


def test_each_bad_file_is_a_reject_of_its_own(tmp_path):
    large = b"x" * (MIB + 1)
    write(tmp_path, {"c/0.png": b"", "c/1.png": large, "c/2.png": b"good", "3.png": b"no class"})
    batches = read(tmp_path, classes=True, max_record_mib=1)
    assert rows(batches) == [("c/2.png", 0, b"good", "c", None, None)]
    assert rejects(batches) == [
        ("missing_class", "3.png", 0, 8),
        ("empty_file", "c/0.png", 0, 0),
        ("record_too_large", "c/1.png", 0, MIB + 1),
    ]
    count = batches[0].counts[0]
    assert (count.records_in, count.records_out) == (4, 1)


def test_unreadable_file(tmp_path):
    write(tmp_path, {"a.png": b"1", "b.png": b"2"})
    config = image_folder.Config(path=(str(tmp_path),))
    files = corpus.list_files(config.path, image_folder.EXTENSIONS)
    (portion,) = corpus._group_files(files, MIB)
    (tmp_path / "a.png").unlink()
    batches = list(image_folder.read(portion, config))
    assert rows(batches) == [("b.png", 0, b"2", None, None, None)]
    assert rejects(batches) == [("unreadable_file", "a.png", 0, 1)]


def test_batches_of_about_four_megabytes_over_files(tmp_path):
    write(tmp_path, {f"{number}.png": bytes([number]) * MIB for number in range(9)})
    batches = read(tmp_path)
    assert [batch.documents.num_rows for batch in batches] == [4, 4, 1]
    assert [row[2] for row in rows(batches)] == [bytes([number]) * MIB for number in range(9)]


@pytest.mark.parametrize("extension", ["txt", ".png"])
def test_caption_extension_is_checked(extension):
    with pytest.raises(ValueError, match="caption_extension: is"):
        image_folder.Config(path=("x",), caption_extension=extension)


@pytest.mark.parametrize(("extension", "others"), [(".txt", ["b.jfif"]), ("", ["a.txt", "b.jfif"])])
def test_files_that_are_passed_over_are_told_but_for_captions(tmp_path, caplog, extension, others):
    write(tmp_path, {"a.jpg": encoded("red", "JPEG"), "a.txt": b"red", "b.jfif": b"x"})
    config = image_folder.Config(path=(str(tmp_path),), caption_extension=extension)
    corpus.plan_portions(image_folder, config)
    (message,) = caplog.messages
    told = f"{len(others)} of 3 files are passed over, as {others[0]}: "
    assert message.startswith(f"{tmp_path}: {told}")


def test_portions_of_the_plan_hold_all_files(tmp_path):
    write(tmp_path, {f"c/{number:03}.png": b"%d" % number for number in range(50)})
    config = image_folder.Config(path=(str(tmp_path),), classes=True)
    portions = corpus.plan_portions(image_folder, config)
    found = [row for part in portions for row in rows(list(image_folder.read(part, config)))]
    assert found == [
        (f"c/{number:03}.png", 0, b"%d" % number, "c", None, None) for number in range(50)
    ]
