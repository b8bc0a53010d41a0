"""`python -m pipeline.index` on a built dataset."""

import shutil
from pathlib import Path

import pytest

from pipeline.index import index_dataset
from pipeline.tar import index_path
from pipeline.verify import verify


@pytest.mark.parametrize("name", ["train.wids.json", ".nv-meta/.info.json", "train-000000.tar.idx"])
def test_index_verb_removes_what_a_killed_one_left(built, tmp_path, name):
    copy = shutil.copytree(built, tmp_path / "copy")
    left = (copy / name).with_name(f".{Path(name).name}.0a1b2c3d")
    left.write_bytes(b"{")
    index_dataset(copy)
    assert not left.exists()
    assert verify(copy) == []


def test_index_verb_makes_the_same_files(built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    names = [path for path in copy.rglob("*") if path.suffix == ".idx" or "wids" in path.name]
    names += list((copy / ".nv-meta").iterdir())
    for path in names:
        path.unlink()
    index_dataset(copy)
    for path in names:
        assert path.read_bytes() == (built / path.relative_to(copy)).read_bytes()
    assert index_path(copy / "train-000000.tar").exists()


def test_index_verb_keeps_a_card_and_makes_a_missing_one(built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    written = (copy / "README.md").read_bytes()
    (copy / "README.md").write_bytes(written + b"Mine.")
    index_dataset(copy)
    assert (copy / "README.md").read_bytes() == written + b"Mine."
    (copy / "README.md").unlink()
    index_dataset(copy)
    assert (copy / "README.md").read_bytes() == written
