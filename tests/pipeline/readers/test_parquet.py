"""Parquet: every kind of text column, row groups as portions, damaged and mistaken files."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileOpener

from pipeline.batch import Batch
from pipeline.corpus import list_files, plan_portions
from pipeline.readers import parquet
from pipeline.urls import StoreError

TEXTS = ["one", "zwei ä", "", "four"]

ABOVE = "; corpus.max_record_mib=1 allows 1048576"


def _read(path: Path, **fields: object) -> list[list[Batch]]:
    config = parquet.Config(path=(str(path),), **fields)
    portions = plan_portions(parquet, config)
    read = [list(parquet.read(portion, config)) for portion in portions]
    for batches in read:
        assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    return read


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_kinds_of_column(documents_in, tmp_path, kind):
    encoded = [text.encode() for text in TEXTS]
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    column = pa.array(encoded if is_binary else TEXTS).cast(kind)
    table = pa.table({"nested": [{"text": 1}] * 4, "body": column})
    pq.write_table(table, tmp_path / "a.parquet")
    ((*batches,),) = _read(tmp_path, column="body")
    assert documents_in(batches) == list(enumerate(encoded))


def test_row_groups_are_portions_of_about_the_size_asked_for(documents_in, tmp_path):
    texts = [f"{number:07d}" * 60_000 for number in range(8)]
    table = pa.table({"text": texts})
    pq.write_table(
        table, tmp_path / "a.parquet", row_group_size=1, compression="none", use_dictionary=False
    )
    config = parquet.Config(path=(str(tmp_path),), portion_mib=1)
    (file,) = list_files(config.path, parquet.EXTENSIONS)
    cuts = parquet.cut(file, config)
    assert [cut[:2] for cut in cuts] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert all(840_000 < size <= 1 << 20 for _, _, size in cuts)
    read = _read(tmp_path, portion_mib=1)
    assert [documents_in(batches) for batches in read] == [
        [(row, texts[row].encode()) for row in (first, first + 1)] for first in (0, 2, 4, 6)
    ]


def test_batches_hold_about_four_megabytes(documents_in, tmp_path):
    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 10}), tmp_path / "a.parquet")
    ((*batches,),) = _read(tmp_path)
    assert [batch.documents.num_rows for batch in batches] == [4, 4, 2, 0]
    assert [position for position, _ in documents_in(batches)] == list(range(10))


def test_null_and_large_values_arerejects_in(documents_in, rejects_in, tmp_path):
    large = "y" * ((1 << 20) + 1)
    pq.write_table(pa.table({"text": ["a", None, large, "b"]}), tmp_path / "a.parquet")
    ((*batches,),) = _read(tmp_path, max_record_mib=1)
    assert documents_in(batches) == [(0, b"a"), (3, b"b")]
    size = len(large)
    assert rejects_in(batches) == [
        ("missing_value", 1, "null", 0, ""),
        ("record_too_large", 2, f"a value of {size} bytes{ABOVE}", size, "y" * 500),
    ]
    assert sum(batch.counts[0].records_in for batch in batches) == 4


def test_file_without_rows(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    ((*batches,),) = _read(tmp_path)
    assert [(batch.documents.num_rows, batch.last) for batch in batches] == [(0, True)]


def test_wrong_column_lists_those_that_exist(tmp_path):
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text'; there are: id, body"):
        _read(tmp_path)


def test_column_that_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'text' holds int64, not a string or binary"):
        _read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet PAR1"])
def test_file_that_is_no_parquet_is_a_reject(documents_in, rejects_in, tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    ((*batches,),) = _read(tmp_path)
    assert documents_in(batches) == []
    ((reason, position, detail, size, _),) = rejects_in(batches)
    assert (reason, position, size) == ("unreadable_file", 0, len(content))
    assert "arquet" in detail


def test_damaged_row_group_keeps_the_others(documents_in, rejects_in, tmp_path):
    texts = [str(number) * 50_000 for number in range(4)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1, compression="snappy")
    place = pq.ParquetFile(path).metadata.row_group(2).column(0).file_offset
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset or place
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    ((*batches,),) = _read(tmp_path)
    assert documents_in(batches) == [(row, texts[row].encode()) for row in (0, 1, 3)]
    assert [reject[:2] for reject in rejects_in(batches)] == [("unreadable_file", 2)]


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError("Access Denied"),
        TimeoutError("slow"),
        StoreError("gone"),
        OSError(5, "bad disk"),
        RuntimeError("a store's own"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("when", ["open", "read"])
def test_a_store_that_fails_is_no_bad_data(documents_in, tmp_path, monkeypatch, failure, when):
    """Else a lost connection would lose a share of the corpus that `max_bad_fraction` allows."""
    rows = pa.table({"text": [str(number) * 50_000 for number in range(4)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=1, compression="none")
    config = parquet.Config(path=(str(tmp_path),))
    (portion,) = plan_portions(parquet, config)

    def fail(*_, **__):
        raise failure

    batches = parquet.read(portion, config)
    if when == "read":
        assert documents_in([next(batches)])[0][0] == 0
        monkeypatch.setattr(LocalFileOpener, "read", fail)
    else:
        monkeypatch.setattr(parquet, "open_corpus_file", fail)
    with pytest.raises(type(failure), match=re.escape(failure.args[-1])):
        list(batches)
