"""Plain text: files and blocks, at any cut."""

import gzip
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.corpus import list_files
from pipeline.readers import text

MIB = 1 << 20

ABOVE = "; corpus.max_record_mib=1 allows 1048576"


def test_file_is_one_document_byte_for_byte(read_range, documents_in, tmp_path):
    content = b"\xef\xbb\xbf a\r\n\n b \xff\n\n"
    (tmp_path / "a.txt").write_bytes(content)
    assert documents_in(read_range(text, tmp_path / "a.txt")) == [(0, content)]


def test_file_is_never_cut(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 2 * MIB)
    config = text.Config(path=(str(tmp_path),), portion_mib=1)
    (file,) = list_files(config.path, text.EXTENSIONS)
    assert text.cut(file, config) == [(0, 2 * MIB, 2 * MIB)]


@pytest.mark.parametrize("documents", ["file", "blocks"])
def test_empty_file_has_no_document(read_range, documents_in, rejects_in, tmp_path, documents):
    (tmp_path / "a.txt").touch()
    batches = read_range(text, tmp_path / "a.txt", documents=documents)
    assert (documents_in(batches), rejects_in(batches)) == ([], [])


def test_large_file_is_a_reject(read_range, documents_in, rejects_in, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 3 * MIB)
    batches = read_range(text, tmp_path / "a.txt", max_record_mib=1)
    size = 3 * MIB
    assert documents_in(batches) == []
    assert rejects_in(batches) == [
        ("record_too_large", 0, f"a file of {size} bytes{ABOVE}", size, "x" * 500)
    ]


def test_blocks(read_range, documents_in, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\n \none\ntwo\n\t\r\n\n three\r\nfour\r\n\r\nfive")
    expected = [(3, b"one\ntwo"), (15, b" three\r\nfour\r"), (31, b"five")]
    assert documents_in(read_range(text, tmp_path / "a.txt", documents="blocks")) == expected


@pytest.mark.parametrize("newlines", [0, 100])
def test_large_block_is_a_reject(read_range, documents_in, rejects_in, tmp_path, newlines):
    large = (b"x" * 30_000 + b"\n") * 100 if newlines else b"x" * 3 * MIB + b"\n"
    (tmp_path / "a.txt").write_bytes(b"a\n\n" + large + b"\nb\n")
    batches = read_range(text, tmp_path / "a.txt", documents="blocks", max_record_mib=1)
    size = len(large) - 1
    assert documents_in(batches) == [(0, b"a"), (3 + size + 2, b"b")]
    assert rejects_in(batches) == [
        ("record_too_large", 3, f"a block of {size} bytes{ABOVE}", size, "x" * 500)
    ]


@pytest.mark.parametrize("documents", ["file", "blocks"])
def test_truncated_gz(read_range, documents_in, rejects_in, tmp_path, documents):
    blocks = [b"block %d" % (number**5) for number in range(9999)]
    whole = gzip.compress(b"\n\n".join(blocks))
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    batches = read_range(text, tmp_path / "a.txt.gz", documents=documents)
    texts = [found for _, found in documents_in(batches)]
    ((reason, position, detail, size, excerpt),) = rejects_in(batches)
    assert (reason, detail) == (
        "truncated_file",
        "the compressed stream ends before its end mark",
    )
    if documents == "file":
        assert (texts, position) == ([], 0)
        assert excerpt.encode() == b"\n\n".join(blocks)[:500]
    else:
        assert len(texts) > 2_000
        assert texts == blocks[: len(texts)]
        assert blocks[len(texts)].startswith(excerpt.encode())
        assert size == len(excerpt)


def test_long_white_line_before_a_cut(read_range, documents_in, tmp_path):
    content = b"a\n" + b" " * 10_000 + b"\nb\nc"
    (tmp_path / "a.txt").write_bytes(content)
    for cut in (3, 5_000, 10_001, 10_002, 10_003, 10_004, 10_005):
        parts = [read_range(text, tmp_path / "a.txt", 0, cut, documents="blocks")]
        parts.append(read_range(text, tmp_path / "a.txt", cut, None, documents="blocks"))
        assert [documents_in(part) for part in parts] in (
            [[(0, b"a")], [(10_003, b"b\nc")]],
            [[(0, b"a"), (10_003, b"b\nc")], []],
        )


# Independent of the reader: lines that are not white, joined by single line feeds.
LINE = rb"(?![ \t\r\v\f]*(?:\n|\Z))[^\n]+"
BLOCK = re.compile(rb"(?:\A|(?<=\n))" + LINE + rb"(?:\n" + LINE + rb")*")


@given(st.text(alphabet="ab \n\r\t", max_size=30).map(str.encode), st.lists(st.integers(0, 30)))
@example(b"  a\nb", [1])
@example(b"a\n  b\n\n c", [3, 4])
def test_any_cuts_give_the_blocks_of_the_file(read_range, documents_in, content, places):
    cuts = sorted({0, len(content), *(min(place, len(content)) for place in places)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(content)
        pieces = [
            read_range(text, path, *bounds, documents="blocks")
            for bounds in zip(cuts, cuts[1:], strict=False)
        ]
    expected = [(match.start(), match.group()) for match in BLOCK.finditer(content)]
    assert [row for piece in pieces for row in documents_in(piece)] == expected
    for piece, (start, stop) in zip(pieces, zip(cuts, cuts[1:], strict=False), strict=True):
        assert all(start <= position < stop for position, _ in documents_in(piece))
