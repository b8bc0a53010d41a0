"""Listing and cutting a corpus: what is found, how it is named, and what a user's mistake says."""

import os
import posixpath
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from pipeline.corpus import (
    CorpusConfig,
    CorpusFile,
    Portion,
    _Found,
    _name,
    list_files,
    plan_portions,
)
from pipeline.readers import jsonl, text
from pipeline.urls import read_url

EXTENSIONS = (".txt", ".txt.gz")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "deep/er/c.TXT", "deep/d.txt.gz", "notes.md"):
        _write(tmp_path / name, name)
    for name in (".hidden.txt", ".cache/x.txt", "deep/.git/y.txt"):
        _write(tmp_path / name, name)
    return tmp_path


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def _sources(*path: str) -> list[str]:
    return [file.source for file in list_files(path, EXTENSIONS)]


def test_folder_is_listed_recursively_without_hidden_files(tree):
    assert _sources(str(tree)) == ["a.txt", "b.txt", "deep/d.txt.gz", "deep/er/c.TXT"]


def test_trailing_slash_changes_nothing(tree):
    assert _sources(f"{tree}/") == _sources(str(tree))


def test_file_has_its_size_url_and_a_version_that_changes_with_it(tree):
    path = tree / "a.txt"
    os.utime(path, (1, 1))
    before = list_files([str(path)], EXTENSIONS)
    assert before == [CorpusFile(str(path), "a.txt", 5, before[0].version)]
    os.utime(path, (2, 2))
    assert list_files([str(path)], EXTENSIONS)[0].version != before[0].version


def test_globs(tree):
    assert _sources(f"{tree}/*.txt") == ["a.txt", "b.txt"]
    assert _sources(f"{tree}/**/*.txt.gz") == ["deep/d.txt.gz"]
    assert _sources(f"{tree}/d*/*") == ["deep/d.txt.gz"]
    assert _sources(f"{tree}/**") == _sources(str(tree))


def test_file_with_glob_characters_in_its_name_is_itself(tmp_path):
    _write(tmp_path / "a[1].txt", "x")
    _write(tmp_path / "a1.txt", "x")
    assert _sources(f"{tmp_path}/a[1].txt") == ["a[1].txt"]


def test_file_with_the_sign_of_a_chain_in_its_name_is_itself(tmp_path):
    _write(tmp_path / "a::b.txt", "content")
    (file,) = list_files([str(tmp_path)], [".txt"])
    assert file.source == "a::b.txt"
    assert read_url(file.url) == b"content"


def test_files_that_are_passed_over_are_told(tmp_path, caplog):
    for name in ("a.txt", "b.text", "c.JSON", "d.json"):
        _write(tmp_path / name, "content")
    assert [file.source for file in list_files([str(tmp_path)], [".txt"], [".json"])] == ["a.txt"]
    assert caplog.messages == [
        f"{tmp_path}: 1 of 4 files are passed over, as b.text: their extension is none of this "
        "format's"
    ]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/closed"])
def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch, pattern):
    """Root may read everything: the system's answer is played."""
    _write(tmp_path / "a.txt", "content")
    _write(tmp_path / "closed/b.txt", "content")
    scandir = os.scandir

    def closed(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="Permission denied: .*closed"):
        list_files([f"{tmp_path}{pattern}"], [".txt"])


def test_bytes_of_a_name_that_are_not_utf8_are_escaped(tmp_path):
    """In what is published; the file is opened by its own name."""
    for name in (b"a.txt", b"caf\xe9/b\xff.txt", b"caf\xe9/\xc3\xa9.txt"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    files = list_files([str(tmp_path)], [".txt"])
    assert [(file.source, read_url(file.url)) for file in files] == [
        ("a.txt", b"a.txt"),
        (r"caf\xe9/b\xff.txt", b"caf\xe9/b\xff.txt"),
        (r"caf\xe9/é.txt", b"caf\xe9/\xc3\xa9.txt"),
    ]


def test_a_name_that_looks_as_an_escaped_one_does_is_told_apart(tmp_path):
    for name in (b"b\xff.txt", rb"b\xff.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    files = list_files([str(tmp_path)], [".txt"])
    assert {read_url(file.url) for file in files} == {b"b\xff.txt", rb"b\xff.txt"}
    assert len({file.source for file in files}) == 2


def test_named_file_may_have_any_extension(tree):
    assert _sources(f"{tree}/notes.md") == ["notes.md"]


def test_each_file_comes_once(tree):
    assert _sources(str(tree), f"{tree}/*.txt", f"{tree}/a.txt") == _sources(str(tree))


def test_links_to_files_are_files(tree):
    (tree / "links").mkdir()
    (tree / "links/l.txt").symlink_to(tree / "notes.md")
    found = list_files([f"{tree}/links"], EXTENSIONS)
    assert [(file.source, file.bytes) for file in found] == [("l.txt", 8)]


def test_links_to_folders_and_to_nothing_are_not_followed_but_told(tree, caplog):
    before = _sources(str(tree))
    (tree / "loop").symlink_to(tree)
    (tree / "gone.txt").symlink_to(tree / "nothing")
    assert _sources(str(tree)) == before
    told = [message for message in caplog.messages if " links to no file" in message]
    assert sorted(message.split(" links to no file")[0] for message in told) == [
        f"{tree}/gone.txt",
        f"{tree}/loop",
    ]
    assert _sources(f"{tree}/loop") == before


def test_equal_names_below_two_roots_are_told_apart(tmp_path):
    for name in ("x/deep/a.txt", "y/deep/a.txt", "y/b.txt"):
        _write(tmp_path / name, name)
    assert _sources(f"{tmp_path}/x", f"{tmp_path}/y/b.txt") == ["b.txt", "deep/a.txt"]
    path = [f"{tmp_path}/x/deep", f"{tmp_path}/y/deep", f"{tmp_path}/y/b.txt"]
    assert _sources(*path) == ["x/deep/a.txt", "y/b.txt", "y/deep/a.txt"]


def test_url(tmp_path):
    with fsspec.open("memory://test_url/in/a.txt", "wb") as file:
        file.write(b"abc")
    found = list_files(["memory://test_url"], EXTENSIONS)
    assert [(file.source, file.bytes) for file in found] == [("in/a.txt", 3)]
    with fsspec.open(found[0].url) as file:
        assert file.read() == b"abc"


def test_sources_show_no_credentials_and_stay_unique():
    """The names that HTTP gives are whole URLs."""
    urls = [
        "http://me:hush@host/in/a.txt?signature=hush",
        "http://me:hush@host/in/b.txt",
        "http://me:hush@other/in/b.txt",
    ]
    found = [
        _Found(url, posixpath.dirname(url), {"name": url, "size": 1, "type": "file"})
        for url in urls
    ]
    assert [file.source for file in _name(found[:2])] == ["a.txt?***", "b.txt"]
    sources = ["me:***@host/in/a.txt?***", "me:***@host/in/b.txt", "me:***@other/in/b.txt"]
    assert [file.source for file in _name(found)] == sources
    other = found[0]._replace(url="http://host/in/a.txt?x=1", info={"name": urls[0], "size": 1})
    assert len({file.source for file in _name([found[0], other])}) == 2
    assert [file.source for file in _name([found[0], found[0]])] == [
        "http://me:***@host/in/a.txt?***#1",
        "http://me:***@host/in/a.txt?***#2",
    ]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none.txt", FileNotFoundError, r"none\.txt: no such file or folder"),
        ("*.nothing", FileNotFoundError, r"\*\.nothing: no file matches; looked for \.txt, "),
        ("empty", FileNotFoundError, r"empty: folder holds no files; looked for \.txt, \.txt\.gz"),
        ("*.md", ValueError, r"\*\.md: 1 files, none .* \.txt, \.txt\.gz; found notes\.md"),
    ],
)
def test_mistake_names_the_pattern_and_what_was_looked_for(tree, path, error, message):
    (tree / "empty").mkdir()
    with pytest.raises(error, match=message):
        list_files([f"{tree}/{path}"], EXTENSIONS)


def test_portions_number_all_pieces_of_all_files(tmp_path):
    mib = 1 << 20
    (tmp_path / "a.txt").write_bytes(b"x" * (2 * mib + 2))
    (tmp_path / "b.txt").write_bytes(b"y")
    config = text.Config(path=(str(tmp_path),), documents="blocks", portion_mib=1)
    a, b = list_files(config.path, text.EXTENSIONS)
    third = (2 * mib + 2) // 3
    assert plan_portions(text, config) == [
        Portion(0, a, 0, third, third),
        Portion(1, a, third, (2 * mib + 2) * 2 // 3, (2 * mib + 2) * 2 // 3 - third),
        Portion(2, a, (2 * mib + 2) * 2 // 3, 2 * mib + 2, third + 1),
        Portion(3, b, 0, 1, 1),
    ]


def test_empty_files_are_portions_and_are_warned_of(tmp_path, caplog):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.txt").write_text("text")
    portions = plan_portions(text, text.Config(path=(str(tmp_path),)))
    assert [(portion.file.source, portion.bytes) for portion in portions] == [
        ("a.txt", 0),
        ("b.txt", 0),
        ("c.txt", 4),
    ]
    assert caplog.messages == ["2 of 3 corpus files are empty, as a.txt, b.txt"]


def test_column_in_no_record_of_the_first_portion_stops_the_plan(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").write_text('{"id": 1, "body": "x"}\n' * 3)
    with pytest.raises(ValueError, match=r"b\.jsonl: no column 'text'; there are: id, body"):
        plan_portions(jsonl, jsonl.Config(path=(str(tmp_path),)))


def test_column_in_some_record_is_enough(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n' * 3 + '{"text": "x"}\n')
    assert len(plan_portions(jsonl, jsonl.Config(path=(str(tmp_path),)))) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ()}, "path: is empty"),
        ({"path": ("a",), "portion_mib": 0}, "portion_mib: is 0"),
        ({"path": ("a",), "max_record_mib": -1}, "max_record_mib: is -1"),
        ({"path": ("a",), "max_record_mib": 257}, "is 257; at most 256 MiB are allowed"),
    ],
)
def test_config_checks(fields, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**fields)


def test_a_small_corpus_is_cut_finer_by_its_size_alone(tmp_path):
    (tmp_path / "one.jsonl").write_bytes(b'{"text": "0123456789"}\n' * (45 << 20 >> 4))
    size = (tmp_path / "one.jsonl").stat().st_size
    config = jsonl.Config(path=(str(tmp_path),))
    portions = plan_portions(jsonl, config)
    assert max(portion.bytes for portion in portions) <= 4 << 20
    assert sum(portion.bytes for portion in portions) == size
    whole = plan_portions(jsonl, replace(config, portion_mib=1))
    assert max(portion.bytes for portion in whole) <= 1 << 20
