"""JSON Lines: equal records wherever the file is cut, and a reject for each fault."""

import gzip
import json
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import Portion, list_files
from pipeline.readers import jsonl

MIB = 1 << 20

ABOVE = "; corpus.max_record_mib=1 allows 1048576"


def test_reads_the_column_of_each_line(read_range, documents_in, rejects_in, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"id": 1, "body": "häß\\n"}\r\n\n  \n{"body": ""}'.encode())
    batches = read_range(jsonl, path, column="body")
    assert documents_in(batches) == [(0, "häß\n".encode()), (34, b"")]
    assert rejects_in(batches) == []
    assert batches[0].documents.column("source").to_pylist() == ["a.jsonl", "a.jsonl"]
    count = batches[0].counts[0]
    assert (count.stage, count.records_in, count.records_out, count.bytes_out) == ("read", 2, 2, 6)


def test_byte_order_mark_before_the_first_line(read_range, documents_in, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    assert documents_in(read_range(jsonl, tmp_path / "a.jsonl")) == [(0, b"x")]


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
def test_bad_line_among_good_ones(
    read_range, documents_in, rejects_in, tmp_path, line, reason, detail
):
    good = b'{"text": "1"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
    batches = read_range(jsonl, tmp_path / "a.jsonl")
    assert documents_in(batches) == [(0, b"1"), (16 + len(line), b"1")]
    ((found, position, told, size, excerpt),) = rejects_in(batches)
    assert (found, position, size) == (reason, 15, len(line))
    assert excerpt == line.decode(errors="replace")
    assert detail in told
    assert batches[0].counts[0].records_in == 3


def test_empty_file_gives_one_last_batch(read_range, tmp_path):
    (tmp_path / "a.jsonl").touch()
    batches = read_range(jsonl, tmp_path / "a.jsonl")
    assert [(batch.documents.num_rows, batch.last) for batch in batches] == [(0, True)]


def test_batches_hold_about_four_megabytes(read_range, documents_in, tmp_path):
    line = json.dumps({"text": "x" * 1_000_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 9)
    batches = read_range(jsonl, tmp_path / "a.jsonl")
    assert [batch.documents.num_rows for batch in batches] == [4, 4, 1]
    assert len(documents_in(batches)) == 9


def test_record_over_the_limit_is_a_reject_and_is_not_held(
    read_range, documents_in, rejects_in, tmp_path
):
    small, large = b'{"text": "x"}\n', b'{"text": "' + b"y" * 3 * MIB + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(small + large + small)
    batches = read_range(jsonl, tmp_path / "a.jsonl", max_record_mib=1)
    assert documents_in(batches) == [(0, b"x"), (14 + len(large), b"x")]
    size = len(large) - 1
    expected = (
        "record_too_large",
        14,
        f"a line of {size} bytes{ABOVE}",
        size,
        large[:500].decode(),
    )
    assert rejects_in(batches) == [expected]


@pytest.mark.parametrize("extension", [".gz", ".zst"])
def test_compressed_file_of_several_frames(read_range, documents_in, tmp_path, extension):
    compress = gzip.compress if extension == ".gz" else zstandard.compress
    lines = [b'{"text": "%d"}\n' % number for number in range(2000)]
    (tmp_path / f"a.json{extension}").write_bytes(
        compress(b"".join(lines[:700]))
        + compress(b"".join(lines[700:]))
        + bytes(512 if extension == ".gz" else 0)
    )
    texts = [text for _, text in documents_in(read_range(jsonl, tmp_path / f"a.json{extension}"))]
    assert texts == [b"%d" % number for number in range(2000)]


def test_truncated_gz_keeps_what_came_before(read_range, documents_in, rejects_in, tmp_path):
    lines = [b'{"text": "%d"}\n' % (number**5) for number in range(20_000)]
    whole = gzip.compress(b"".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    batches = read_range(jsonl, tmp_path / "a.jsonl.gz")
    texts = [text for _, text in documents_in(batches)]
    assert texts == [b"%d" % (number**5) for number in range(len(texts))]
    assert 8_000 < len(texts) < 12_000
    ((reason, position, detail, size, excerpt),) = rejects_in(batches)
    assert reason == "truncated_file"
    assert detail == "the compressed stream ends before its end mark"
    assert position == sum(map(len, lines[: len(texts)]))
    assert excerpt.encode() == lines[len(texts)][:size]


def test_truncated_zst(read_range, documents_in, rejects_in, tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number**9 for number in range(40_000))
    whole = zstandard.compress(lines)
    (tmp_path / "a.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    batches = read_range(jsonl, tmp_path / "a.jsonl.zst")
    texts = [text for _, text in documents_in(batches)]
    assert texts == [b"%d" % number**9 for number in range(len(texts))]
    assert len(texts) > 1_000
    assert [reject[0] for reject in rejects_in(batches)] == ["truncated_file"]


def test_corrupt_gz(read_range, documents_in, rejects_in, tmp_path):
    lines = b"".join(b'{"text": "%d"}\n' % number**9 for number in range(40_000))
    whole = bytearray(gzip.compress(lines))
    whole[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    batches = read_range(jsonl, tmp_path / "a.jsonl.gz")
    assert len(documents_in(batches)) > 1_000
    assert rejects_in(batches)[-1][0] == "truncated_file"
    assert "corrupt compressed stream" in rejects_in(batches)[-1][2]


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
def test_any_cuts_give_the_records_of_the_whole_file(
    read_range, documents_in, rejects_in, lines, end, data
):
    content = b"\n".join(lines) + end
    places = st.integers(0, len(content))
    cuts = sorted({0, len(content), *data.draw(st.lists(places, max_size=6))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(content)
        whole = read_range(jsonl, path)
        pieces = [read_range(jsonl, path, *bounds) for bounds in zip(cuts, cuts[1:], strict=False)]
    assert [row for piece in pieces for row in documents_in(piece)] == (
        documents_in(whole) if len(content) else []
    )
    assert [row for piece in pieces for row in rejects_in(piece)] == rejects_in(whole)
