"""The wheel: what `pip install millrace` brings."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_packages_yaml_and_the_demo_corpus(tmp_path):
    source = _clean_copy(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(tmp_path / "wheel"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("millrace-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = [
        path
        for folder in ("configs", "pipeline", "training")
        for path in (source / folder).rglob("*")
    ]
    for path in ours:
        if path.suffix in {".py", ".yaml", ".txt"}:
            assert str(path.relative_to(source)) in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def _clean_copy(target):
    """The files that git knows, so that a build leaves nothing in the checkout."""
    command = ["git", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target
