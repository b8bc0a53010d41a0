import os
import subprocess
import sys

import pytest

from pipeline.lock import DatasetLock


def test_lock_is_gone_afterwards_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        with DatasetLock(tmp_path / "d"):
            assert (tmp_path / "d" / ".lock").read_text() == str(os.getpid())
        assert list((tmp_path / "d").iterdir()) == []


def test_the_holder_is_named(tmp_path):
    with DatasetLock(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()}\)"):
        DatasetLock(tmp_path).__enter__()


def test_a_lock_of_a_dead_process_does_not_hold(tmp_path):
    code = (
        "import os, signal, sys, pathlib; from pipeline.lock import DatasetLock\n"
        "DatasetLock(pathlib.Path(sys.argv[1])).__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert died.returncode == -9
    assert (tmp_path / ".lock").exists()
    with DatasetLock(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "d").write_text("")
    with pytest.raises(ValueError, match="is a file; dataset_dir names a folder"):
        DatasetLock(tmp_path / "d").__enter__()
