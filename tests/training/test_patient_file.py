"""A file that outlives a full disk: every row once, in order, complete; the loss is told."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.patient_file import PatientFile


@pytest.fixture
def file(tmp_path):
    return PatientFile(tmp_path / "rows", most_waiting_bytes=100)


def rows_of(file):
    return file.path.read_bytes().split(b"\n")[:-1] if file.path.exists() else []


def rows(*names):
    return [name.encode() + b"\n" for name in names]


def test_rows_are_written_by_a_flush(file, capsys):
    file.add(rows("a", "b"))
    assert rows_of(file) == []
    file.flush()
    file.add(rows("c"))
    file.close()
    assert rows_of(file) == [b"a", b"b", b"c"]
    assert capsys.readouterr().out == ""


def test_nothing_to_write_makes_no_file(file):
    file.flush()
    file.close()
    assert not file.path.exists()


def test_a_full_disk_is_told_once_and_no_row_is_cut(file, full_disk, capsys):
    file.add(rows("first"))
    file.flush()
    for name in ("second", "third"):
        with full_disk(9):  # the first row and half of the second
            file.add(rows(name))
            file.flush()
        assert rows_of(file) == [b"first"]
    out = capsys.readouterr().out
    assert out.count(f"warning: {file.path} cannot be written: ") == 1
    assert "training goes on" in out
    file.flush()
    assert rows_of(file) == [b"first", b"second", b"third"]
    assert capsys.readouterr().out == f"{file.path} is written again\n"


def test_the_next_full_disk_is_told_again(file, full_disk, capsys):
    for name in ("a", "b"):
        with full_disk(0):
            file.add(rows(name))
            file.flush()
        file.flush()
    assert capsys.readouterr().out.count("warning: ") == 2
    assert rows_of(file) == [b"a", b"b"]


def test_memory_is_bounded_and_the_loss_is_told(file, full_disk, capsys):
    with full_disk(0):
        for number in range(30):  # of 10 bytes each; 100 bytes may wait
            file.add([b"row %05d\n" % number])
            file.flush()
    file.flush()
    assert rows_of(file) == [b"row %05d" % number for number in range(20, 30)]
    assert f"{file.path} is written again; 20 rows are lost" in capsys.readouterr().out


def test_what_is_lost_at_the_end_is_told(file, full_disk, capsys):
    with full_disk(0):
        file.add(rows("a", "b"))
        file.close()
    expected = f"warning: {file.path} ends without its last rows; 2 rows are lost\n"
    assert capsys.readouterr().out.endswith(expected)


def test_a_folder_that_is_gone(tmp_path, capsys):
    file = PatientFile(tmp_path / "gone" / "rows")
    file.add(rows("a"))
    file.flush()
    assert "cannot be written: [Errno 2] No such file or directory" in capsys.readouterr().out
    file.path.parent.mkdir()
    file.flush()
    assert rows_of(file) == [b"a"]


@given(st.lists(st.tuples(st.lists(st.binary(max_size=9), max_size=4), st.integers(0, 40))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it keeps no state
def test_any_history_of_a_disk(tmp_path_factory, full_disk, history):
    """Whatever was refused, the file holds whole rows in order, and at the end all of them."""
    file = PatientFile(tmp_path_factory.mktemp("log") / "rows")
    added = []
    for contents, limit in history:
        file.add(contents)
        added += contents
        with full_disk(limit):
            file.flush()
        written = file.path.read_bytes() if file.path.exists() else b""
        assert any(written == b"".join(added[:count]) for count in range(len(added) + 1))
    file.close()
    assert (file.path.read_bytes() if file.path.exists() else b"") == b"".join(added)
