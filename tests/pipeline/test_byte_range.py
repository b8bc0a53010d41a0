"""Lines of byte ranges, whatever the sizes in which the bytes arrive."""

import gzip
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import byte_range
from pipeline.byte_range import DamagedFileError, Line, cut_bytes, lines
from pipeline.corpus import CorpusFile


def _file(path: Path) -> CorpusFile:
    return CorpusFile(str(path), path.name, path.stat().st_size, "")


def _lines(path: Path, start: int = 0, stop: int | None = None, limit: int = 9) -> list[Line]:
    with (
        mock.patch.object(byte_range, "_BLOCK_BYTES", 3),
        mock.patch.object(byte_range, "_COMPRESSED_BYTES", 2),
        mock.patch.object(byte_range, "EXCERPT_BYTES", 4),
    ):
        return list(lines(_file(path), start=start, stop=stop, max_bytes=limit))


def _expected(content: bytes, limit: int = 9) -> list[Line]:
    texts = content.split(b"\n")
    starts = [sum(len(text) + 1 for text in texts[:index]) for index in range(len(texts))]
    texts = texts if texts[-1] else texts[:-1]
    return [
        Line(start, text if len(text) <= limit else text[:4], len(text))
        for start, text in zip(starts, texts, strict=False)
    ]


CONTENT = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"def", b"0123456"])).map(b"".join)


@given(CONTENT, st.sampled_from(["a", "a.gz", "a.zst"]))
def test_lines_of_a_file(content, name):
    compress = {"a": bytes, "a.gz": gzip.compress, "a.zst": zstandard.compress}[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(compress(content))
        assert _lines(path) == _expected(content)


@given(CONTENT, st.integers(0, 60), st.integers(0, 60))
def test_lines_of_a_range_are_those_that_begin_in_it(content, start, stop):
    start, stop = sorted((min(start, len(content)), min(stop, len(content))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        expected = [line for line in _expected(content) if start <= line.position < stop]
        assert _lines(path, start, stop) == expected


@given(st.integers(0, 10**15), st.integers(1, 10**12))
def test_cuts_are_near_equal_and_without_a_gap(size, portion_bytes):
    portion_bytes = max(portion_bytes, size // 1000)
    cuts = cut_bytes(CorpusFile("a.txt", "a.txt", size, ""), portion_bytes)
    assert [start for start, _, _ in cuts] == [0, *(stop for _, stop, _ in cuts[:-1])]
    assert cuts[-1][1] == size
    sizes = [length for _, _, length in cuts]
    assert sizes == [stop - start for start, stop, _ in cuts]
    assert max(sizes) <= portion_bytes
    assert max(sizes) - min(sizes) <= 1


def test_compressed_file_is_one_piece():
    assert cut_bytes(CorpusFile("a.TXT.GZ", "a", 10, ""), 3) == [(0, 10, 10)]


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_damage_tells_the_line_in_which_the_stream_ends(tmp_path, cut):
    content = b"".join(b"%d\n" % number for number in range(10**9, 10**9 + 50))
    whole = gzip.compress(content, mtime=0)
    (tmp_path / "a.gz").write_bytes(whole[:-cut])
    with pytest.raises(DamagedFileError, match="ends before its end mark") as caught:
        list(lines(_file(tmp_path / "a.gz"), start=0, stop=None, max_bytes=99))
    assert caught.value.line.position % 11 == 0
    assert content[caught.value.line.position :].startswith(caught.value.line.head)


def test_bytes_that_are_no_frame_behind_a_frame(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\n") + b"\0\0garbage")
    found = []
    with pytest.raises(DamagedFileError, match="corrupt compressed stream") as caught:
        for line in lines(_file(tmp_path / "a.gz"), start=0, stop=None, max_bytes=99):
            found.append(line)
    assert found == [Line(0, b"one", 3)]
    assert 0 < caught.value.unread <= (tmp_path / "a.gz").stat().st_size


@pytest.mark.parametrize("good", [b"", gzip.compress(bytes(2_000_000), 0)])
def test_damage_tells_how_much_was_not_read(tmp_path, good):
    """To 4 KiB: so much is inflated at a time."""
    (tmp_path / "a.gz").write_bytes(good + b"garbage" * 50_000)
    with pytest.raises(DamagedFileError, match="corrupt compressed stream") as caught:
        list(lines(_file(tmp_path / "a.gz"), start=0, stop=None, max_bytes=99))
    assert 350_000 <= caught.value.unread < 350_000 + 4096


def test_a_zst_frame_of_the_largest_window(tmp_path):
    window = zstandard.ZstdCompressionParameters(window_log=31, hash_log=12, chain_log=12)
    made = zstandard.ZstdCompressor(compression_params=window).compressobj()
    (tmp_path / "a.zst").write_bytes(made.compress(b"one\n") + made.flush())
    found = list(lines(_file(tmp_path / "a.zst"), start=0, stop=None, max_bytes=99))
    assert found == [Line(0, b"one", 3)]
