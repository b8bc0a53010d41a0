"""The folder of an export: whole or absent, and never over someone's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.huggingface.destination import MARKER, check_destination, whole_folder


def write(out, **files):
    with whole_folder(out, {"step": 1}) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MARKER}


def test_written_and_replaced(tmp_path):
    out = tmp_path / "deep/out"
    write(out, a="1", b="2")
    assert contents(out) == {"a": "1", "b": "2"}
    write(out, a="3")
    assert contents(out) == {"a": "3"}
    marker = json.loads((out / MARKER).read_text())
    assert marker["step"] == 1
    assert list(marker["files"]) == ["a"]
    assert list(out.parent.iterdir()) == [out]


def test_others_may_read_it(tmp_path):
    previous = os.umask(0o022)
    try:
        with whole_folder(tmp_path / "out", {}) as folder:
            (folder / "a").touch(mode=0o600)
    finally:
        os.umask(previous)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_a_fault_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="fault"), whole_folder(out, {}) as folder:
        (folder / "a").write_text("1")
        raise RuntimeError("fault")
    assert list(tmp_path.iterdir()) == []
    write(out, a="1")
    with pytest.raises(RuntimeError, match="fault"), whole_folder(out, {}):
        raise RuntimeError("fault")
    assert contents(out) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [out]


def test_files_of_others_are_refused(tmp_path):
    out = tmp_path / "out"
    write(out, a="1")
    (out / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"out: holds README.md, which no export wrote; choose"):
        check_destination(out)
    (out / MARKER).write_text("{}")
    with pytest.raises(ValueError, match=r"out: holds README.md and 2 more, which no export"):
        write(out, a="2")
    assert contents(out) == {"a": "1", "README.md": "mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file: is no folder"):
        check_destination(tmp_path / "file")


def test_files_that_came_while_it_was_written(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="holds mine"), whole_folder(out, {}) as folder:
        (folder / "a").write_text("1")
        out.mkdir()
        (out / "mine").write_text("1")
    assert contents(out) == {"mine": "1"}


def test_an_empty_folder_and_a_link_are_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    write(tmp_path / "link", a="1")
    assert contents(tmp_path / "out") == {"a": "1"}
    assert (tmp_path / "link").is_symlink()


KILLED = """
import os, pathlib, signal
from training.huggingface.destination import whole_folder
with whole_folder(pathlib.Path("out"), {}) as folder:
    (folder / "model.safetensors").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_goes_and_a_living_one_stays(tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    (dead,) = tmp_path.iterdir()
    assert [path.name for path in dead.iterdir()] == ["model.safetensors"]
    with whole_folder(out, {}) as living:
        (living / "a").write_text("1")
        write(out, b="2")
        assert living.is_dir()
        assert not dead.exists()
        assert contents(out) == {"b": "2"}
    assert contents(out) == {"a": "1"}
    assert list(tmp_path.iterdir()) == [out]
