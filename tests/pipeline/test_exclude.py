import pyarrow as pa
import pytest

from pipeline.exclude import EXCLUDED, Excluded, read_excluded, read_table, write_table

ROWS = pa.RecordBatch.from_pylist(
    [{"key": bytes([n]) * 16, "reason": "r", "detail": f"d {n}"} for n in (3, 7)], schema=EXCLUDED
)


def keys(*numbers):
    return pa.array([bytes([n]) * 16 for n in numbers], pa.binary(16))


def test_find_gives_the_row_of_each_key():
    excluded = Excluded(ROWS)
    assert excluded.find(keys(3, 5, 7, 3)).tolist() == [0, -1, 1, 0]
    assert excluded.find(keys()).tolist() == []
    assert excluded.find(keys(1, 3, 2).slice(1)).tolist() == [0, -1]
    assert excluded.find(keys(9, 255)).tolist() == [-1, -1]
    assert Excluded.none().find(keys(3)).tolist() == [-1]


def test_keys_that_end_in_zeros_are_told_apart():
    held = sorted(
        [bytes([1]) + bytes(15), bytes(16), bytes([200]) * 15 + bytes(1), bytes([200]) * 16]
    )
    rows = pa.RecordBatch.from_pylist([{"key": key} for key in held], schema=EXCLUDED)
    excluded = Excluded(rows)
    assert excluded.find(pa.array(held[::-1], pa.binary(16))).tolist() == [3, 2, 1, 0]
    assert excluded.find(pa.array([bytes(15) + b"\1"], pa.binary(16))).tolist() == [-1]


def test_tables_come_back(tmp_path):
    write_table(tmp_path / "table", ROWS)
    assert read_excluded(tmp_path / "table").rows.equals(ROWS)
    assert read_table(tmp_path / "table", ("detail",)).to_pydict() == {"detail": ["d 3", "d 7"]}
    assert [path.name for path in tmp_path.iterdir()] == ["table"]
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none")
