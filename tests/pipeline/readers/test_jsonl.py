"""JSON Lines: equal records wherever the file is cut, and a reject for each fault."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import Batch
from pipeline.corpus import Portion, list_files
from pipeline.readers import jsonl

MIB = 1 << 20

ABOVE = "; corpus.max_record_mib=1 allows 1048576"


def _read(path: Path, start: int = 0, stop: int | None = None, **fields: object) -> list[Batch]:
    config = jsonl.Config(path=(str(path),), **fields)
    file = list_files(config.path, jsonl.EXTENSIONS)[0]
    stop = file.bytes if stop is None else stop
    return list(jsonl.read(Portion(0, file, start, stop, stop - start), config))


def _documents(batches: list[Batch]) -> list[tuple[int, bytes]]:
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    rows = [row for batch in batches for row in batch.documents.to_pylist()]
    return [(row["position"], row["text"]) for row in rows]


def _rejects(batches: list[Batch]) -> list[tuple[str, int, str, int, str]]:
    rows = [row for batch in batches for row in batch.rejects.to_pylist()]
    assert {row["stage"] for row in rows} <= {"read"}
    return [
        (row["reason"], row["position"], row["detail"], row["bytes"], row["excerpt"])
        for row in rows
    ]


def test_reads_the_column_of_each_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"id": 1, "body": "häß\\n"}\r\n\n  \n{"body": ""}'.encode())
    batches = _read(path, column="body")
    assert _documents(batches) == [(0, "häß\n".encode()), (34, b"")]
    assert _rejects(batches) == []
    assert batches[0].documents.column("source").to_pylist() == ["a.jsonl", "a.jsonl"]
    count = batches[0].counts[0]
    assert (count.stage, count.records_in, count.records_out, count.bytes_out) == ("read", 2, 2, 6)


def test_byte_order_mark_before_the_first_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    assert _documents(_read(tmp_path / "a.jsonl")) == [(0, b"x")]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "x"', "invalid_json", "unexpected end of data"),
        (b'["x"]', "invalid_json", "the line holds no object but a list"),
        (b'{"body": 1, "id": 2}', "missing_column", "no column 'text'; there are: body, id"),
        (b'{"text": null}', "not_text", "column 'text' holds null"),
        (b'{"text": 7.5}', "not_text", "column 'text' holds a number"),
        (b'{"text": "a\xff"}', "invalid_utf8", "invalid start byte at byte 26 of the file"),
    ],
)
def test_bad_line_among_good_ones(tmp_path, line, reason, detail):
    good = b'{"text": "1"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
    batches = _read(tmp_path / "a.jsonl")
    assert _documents(batches) == [(0, b"1"), (16 + len(line), b"1")]
    ((found, position, told, size, excerpt),) = _rejects(batches)
    assert (found, position, size) == (reason, 15, len(line))
    assert excerpt == line.decode(errors="replace")
    assert detail in told
    assert batches[0].counts[0].records_in == 3


def test_empty_file_gives_one_last_batch(tmp_path):
    (tmp_path / "a.jsonl").touch()
    batches = _read(tmp_path / "a.jsonl")
    assert [(batch.documents.num_rows, batch.last) for batch in batches] == [(0, True)]


def test_batches_hold_about_four_megabytes(tmp_path):
    line = json.dumps({"text": "x" * 1_000_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 9)
    batches = _read(tmp_path / "a.jsonl")
    assert [batch.documents.num_rows for batch in batches] == [4, 4, 1]
    assert len(_documents(batches)) == 9


def test_record_over_the_limit_is_a_reject_and_is_not_held(tmp_path):
    small, large = b'{"text": "x"}\n', b'{"text": "' + b"y" * 3 * MIB + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(small + large + small)
    batches = _read(tmp_path / "a.jsonl", max_record_mib=1)
    assert _documents(batches) == [(0, b"x"), (14 + len(large), b"x")]
    size = len(large) - 1
    expected = (
        "record_too_large",
        14,
        f"a line of {size} bytes{ABOVE}",
        size,
        large[:500].decode(),
    )
    assert _rejects(batches) == [expected]


@pytest.mark.parametrize("extension", [".gz", ".zst"])
def test_compressed_file_of_several_frames(tmp_path, extension):
    compress = gzip.compress if extension == ".gz" else zstandard.compress
    lines = [b'{"text": "%d"}\n' % number for number in range(2000)]
    (tmp_path / f"a.json{extension}").write_bytes(
        compress(b"".join(lines[:700]))
        + compress(b"".join(lines[700:]))
        + bytes(512 if extension == ".gz" else 0)
    )
    texts = [text for _, text in _documents(_read(tmp_path / f"a.json{extension}"))]
    assert texts == [b"%d" % number for number in range(2000)]


def test_truncated_gz_keeps_what_came_before(tmp_path):
    lines = [b'{"text": "%d"}\n' % (number**5) for number in range(20_000)]
    whole = gzip.compress(b"".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    batches = _read(tmp_path / "a.jsonl.gz")
    texts = [text for _, text in _documents(batches)]
    assert texts == [b"%d" % (number**5) for number in range(len(texts))]
    assert 8_000 < len(texts) < 12_000
    ((reason, position, detail, size, excerpt),) = _rejects(batches)
    assert reason == "truncated_file"
    assert detail == "the compressed stream ends before its end mark"
    assert position == sum(map(len, lines[: len(texts)]))
    assert excerpt.encode() == lines[len(texts)][:size]


def test_truncated_zst(tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number**9 for number in range(40_000))
    whole = zstandard.compress(lines)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    batches = _read(tmp_path / "a.jsonl.zst")
    texts = [text for _, text in _documents(batches)]
    assert texts == [b"%d" % number**9 for number in range(len(texts))]
    assert len(texts) > 1_000
    assert [reject[0] for reject in _rejects(batches)] == ["truncated_file"]


def test_corrupt_gz(tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number**9 for number in range(40_000))
    whole = bytearray(gzip.compress(lines))
    whole[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    batches = _read(tmp_path / "a.jsonl.gz")
    assert len(_documents(batches)) > 1_000
    assert _rejects(batches)[-1][0] == "truncated_file"
    assert "corrupt compressed stream" in _rejects(batches)[-1][2]


def test_file_that_changed_since_it_was_listed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    config = jsonl.Config(path=(str(path),))
    file = list_files(config.path, jsonl.EXTENSIONS)[0]
    path.write_text('{"text": "xyz"}\n')
    with pytest.raises(ValueError, match="had 14 bytes when listed, now has 16"):
        list(jsonl.read(Portion(0, file, 0, 14, 14), config))


LINES = st.one_of(
    st.sampled_from([b"", b" ", b"\r", b"{", b'"x"', b'{"text": 1}', b'{"text": "\xff"}']),
    st.text(max_size=9).map(lambda text: json.dumps({"text": text}, ensure_ascii=True).encode()),
)


@given(st.lists(LINES, max_size=12), st.sampled_from([b"", b"\n"]), st.data())
def test_any_cuts_give_the_records_of_the_whole_file(lines, end, data):
    content = b"\n".join(lines) + end
    places = st.integers(0, len(content))
    cuts = sorted({0, len(content), *data.draw(st.lists(places, max_size=6))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(content)
        whole = _read(path)
        pieces = [_read(path, *bounds) for bounds in zip(cuts, cuts[1:], strict=False)]
    assert [row for piece in pieces for row in _documents(piece)] == (
        _documents(whole) if len(content) else []
    )
    assert [row for piece in pieces for row in _rejects(piece)] == _rejects(whole)
