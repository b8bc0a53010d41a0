import pyarrow as pa
import pytest

from pipeline.exclude import EXCLUDED, Excluded, read_excluded, read_table, write_table

ROWS = pa.RecordBatch.from_pylist(
    [{"key": bytes([n]) * 16, "reason": "r", "detail": f"d {n}"} for n in (7, 3)], schema=EXCLUDED
)


def keys(*numbers):
    return pa.array([bytes([n]) * 16 for n in numbers], pa.binary(16))


def test_find_gives_the_row_of_each_key():
    excluded = Excluded(ROWS)
    assert excluded.find(keys(3, 5, 7, 3)).tolist() == [1, -1, 0, 1]
    assert excluded.find(keys()).tolist() == []
    assert excluded.find(keys(1, 3, 2).slice(1)).tolist() == [1, -1]
    assert Excluded.none().find(keys(3)).tolist() == [-1]


def test_tables_come_back(tmp_path):
    write_table(tmp_path / "table", ROWS)
    assert read_excluded(tmp_path / "table").rows.equals(ROWS)
    assert read_table(tmp_path / "table", ("detail",)).to_pydict() == {"detail": ["d 7", "d 3"]}
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none")
