from collections import namedtuple

import pytest

from pipeline.__main__ import main
from pipeline.corpus import CorpusFile, Portion
from pipeline.space import check_free_space, estimate_bytes, full_disk_advice


def portions(name, size):
    file = CorpusFile(url=f"/corpus/{name}", source=name, bytes=size, version="")
    return [Portion(0, file, 0, size, size)]


def test_estimates():
    assert estimate_bytes(portions("a.jsonl", 1000), growth=0.9) == 900
    assert estimate_bytes(portions("a.jsonl", 1000), growth=4.0) == 4000
    assert estimate_bytes(portions("a.jsonl.gz", 1000), growth=0.9) == 2700


def test_a_disk_probably_too_small_is_warned_of(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 2**30))
    check_free_space(tmp_path, portions("a.jsonl", 2 * 2**30), growth=0.9)
    assert not caplog.messages
    check_free_space(tmp_path, portions("a.jsonl", 3 * 2**30), growth=0.9)
    expected = "1.00 GiB are free on its disk, the build probably needs 1.35 GiB or more"
    assert caplog.messages == [f"{tmp_path}: {expected}"]


def test_what_a_killed_build_wrote_counts_as_free(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 10))
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "spill").write_bytes(bytes(500))
    check_free_space(tmp_path, portions("a.jsonl", 1000), growth=0.9)
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
