import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from fsspec import register_implementation

from pipeline.byte_range import lines
from pipeline.corpus import CorpusFile, list_files
from pipeline.urls import EXTRAS, locate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://bucket/*.jsonl", "s3fs", "s3"),
        ("gs://bucket/a", "gcsfs", "gcs"),
        ("https://host/a.txt", "aiohttp", "http"),
        ("zip://*.txt::s3://bucket/a.zip", "s3fs", "s3"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(url, package, extra):
    hidden = (
        f"import sys\nfor name in ('s3fs', 'gcsfs', 'aiohttp'): sys.modules[name] = None\n{RUN}"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, url], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{url}: ")
    assert package in done.stdout
    assert done.stdout.endswith(f"pip install 'millrace[{extra}]'\n")
    assert done.stdout.count("\n") == 1


RUN = """
from pipeline.urls import locate
try:
    locate(sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_an_unknown_protocol():
    with pytest.raises(ValueError, match="^nope://a: Protocol not known"):
        locate("nope://a")


def test_a_package_of_no_extra(monkeypatch):
    register_implementation("odd", "no_such_package.FileSystem", clobber=True, errtxt="Get odd")
    with pytest.raises(ValueError, match="^odd://a: Get odd$"):
        locate("odd://a")


@pytest.mark.parametrize(
    ("pattern", "sources"),
    [
        ("zip://inaugural/*.txt::{}", ["a.txt", "b.txt"]),
        ("zip://inaugural::{}", ["a.txt", "b.txt"]),
        ("zip://inaugural/b.txt::{}", ["b.txt"]),
        ("zip://*.txt::{}", ["top.txt"]),
    ],
)
def test_members_of_an_archive(tmp_path, pattern, sources):
    path = tmp_path / "inaugural.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("inaugural/a.txt", "inaugural/b.txt", "top.txt"):
            archive.writestr(name, f"text of {Path(name).name}")
    files = list_files((pattern.format(path),), (".txt",))
    assert [file.source for file in files] == sources
    assert all(isinstance(file, CorpusFile) and file.version for file in files)
    read = [list(lines(file, start=0, stop=None, max_bytes=99)) for file in files]
    assert [[line.head for line in found] for found in read] == [
        [f"text of {name}".encode()] for name in sources
    ]
