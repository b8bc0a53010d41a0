from collections import namedtuple

import pytest

from pipeline.__main__ import main
from pipeline.corpus import CorpusFile, Portion
from pipeline.space import check_free_space, estimate_bytes, full_disk_advice


def portions(name, size):
    file = CorpusFile(url=f"/corpus/{name}", source=name, bytes=size, version="")
    return [Portion(0, file, 0, size, size)]


@pytest.fixture
def free(monkeypatch):
    """`free(bytes)`: of the disk."""
    usage = namedtuple("usage", "total used free")

    def set_free(size):
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, size))

    return set_free


def test_estimates():
    assert estimate_bytes(portions("a.jsonl", 1000), growth=0.9) == 900
    assert estimate_bytes(portions("a.jsonl", 1000), growth=4.0) == 4000
    assert estimate_bytes(portions("a.jsonl.gz", 1000), growth=0.9) == 3600


@pytest.mark.parametrize(
    ("size", "free_bytes", "line"),
    [
        (121 * 2**20, int(57.13 * 2**30), "up to 121 MiB of disk while it is built, 57.1 GiB"),
        (5 * 2**29, 2000 * 2**30, "up to 2.50 GiB of disk while it is built, 2,000 GiB"),
        (1000, 2**30, "up to 0.00 MiB of disk while it is built, 1.00 GiB"),
    ],
)
def test_what_a_build_needs_is_stated(tmp_path, free, capsys, caplog, size, free_bytes, line):
    free(free_bytes)
    folder = tmp_path / "[web]"
    folder.mkdir()
    check_free_space(folder, portions("a.jsonl", size), growth=1.0)
    assert capsys.readouterr() == ("", f"{folder}: {line} are free\n")
    assert not caplog.messages


def test_a_disk_probably_too_small_is_warned_of(tmp_path, free, caplog):
    free(2**30)
    check_free_space(tmp_path, portions("a.jsonl", 2 * 2**30), growth=1.6)
    assert not caplog.messages
    check_free_space(tmp_path, portions("a.jsonl", 3 * 2**30), growth=1.6)
    expected = "1.00 GiB are free on its disk, the build probably needs 1.44 GiB or more"
    assert caplog.messages == [f"{tmp_path}: {expected}"]


def test_what_a_killed_build_wrote_counts_as_free(tmp_path, free, capsys, caplog):
    free(10)
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "spill").write_bytes(bytes(3 * 2**20))
    check_free_space(tmp_path, portions("a.jsonl", 4 * 2**20), growth=1.0)
    assert "up to 1.00 MiB of disk" in capsys.readouterr().err
    assert not caplog.messages


@pytest.mark.parametrize(
    ("message", "is_full"),
    [("OSError: [Errno 28] No space left on device", True), ("OSError: Permission denied", False)],
)
def test_advice(message, is_full):
    assert ("free space" in full_disk_advice(message)) is is_full


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/d/x"), 1, "free space and run the same command"),
        (FileNotFoundError("c: no such file or folder"), 2, "error: c: no such file or folder\n"),
    ],
)
def test_the_verb_advises_where_the_driver_fills_the_disk(
    tmp_path, monkeypatch, capsys, error, code, said
):
    def fail(*_):
        raise error

    monkeypatch.setattr("pipeline.__main__.build", fail)
    path = tmp_path / "c.yaml"
    path.write_text("dataset_dir: d\ncorpus: {format: jsonl, path: [c]}\n")
    with pytest.raises(SystemExit) as exited:
        main([str(path)])
    assert exited.value.code == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
