import gzip
import json
import tempfile
from pathlib import Path

import orjson
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import REJECTS
from pipeline.rejects import (
    EXAMPLES,
    RejectPieces,
    add_tallies,
    join_rejects,
    sort_rejects,
    tally,
    tally_from_row,
    tally_row,
    write_rejects,
)


def rejects(*rows):
    """Rows of stage, reason, source, position."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "stage": stage,
                "reason": reason,
                "detail": "d",
                "source": source,
                "position": position,
                "bytes": 10,
                "excerpt": "e" * 300,
            }
            for stage, reason, source, position in rows
        ],
        schema=REJECTS,
    )


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def origins(path):
    return [(row["source"], row["position"]) for row in lines(path)]


def test_members_are_sorted_by_origin_and_joined_in_order(tmp_path):
    folder, out = tmp_path / "members", tmp_path / "out"
    folder.mkdir()
    write_rejects(folder, "p1", rejects(("read", "x", "b", 9), ("read", "x", "b", 1)))
    write_rejects(folder, "p0", rejects(("read", "y", "a", 3), ("quality", "z", "a", 2)))
    write_rejects(folder, "p2", rejects())
    join_rejects(folder, ["p0", "p1", "p2"], out)
    assert sorted(path.name for path in out.iterdir()) == ["quality.jsonl.gz", "read.jsonl.gz"]
    assert origins(out / "read.jsonl.gz") == [("a", 3), ("b", 1), ("b", 9)]
    assert lines(out / "quality.jsonl.gz") == [
        {
            "stage": "quality",
            "reason": "z",
            "detail": "d",
            "source": "a",
            "position": 2,
            "bytes": 10,
            "excerpt": "e" * 300,
        }
    ]


def test_equal_rows_give_equal_bytes(tmp_path):
    rows = [("read", "x", "b", 9), ("read", "x", "a", 1)]
    for name, order in (("one", rows), ("two", rows[::-1])):
        (tmp_path / name).mkdir()
        write_rejects(tmp_path / name, "p", rejects(*order))
    one, two = (tmp_path / name / "read" / "p.jsonl.gz" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_members_of_an_earlier_build_with_other_filters_go(tmp_path):
    write_rejects(tmp_path, "p0", rejects(("quality", "x", "a", 1)))
    write_rejects(tmp_path, "p0", rejects(("read", "x", "a", 1)))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.gz")] == [
        "read/p0.jsonl.gz"
    ]


def test_tally_counts_and_keeps_the_first_examples():
    found = tally(rejects(*[("read", "x", "a", i) for i in (5, 4, 3, 2)], ("read", "w", "b", 0)))
    assert [(one.stage, one.reason, one.records, one.bytes) for one in found] == [
        ("read", "w", 1, 10),
        ("read", "x", 4, 40),
    ]
    assert [example["position"] for example in found[1].examples] == [2, 3, 4]
    assert found[0].examples[0] == {
        "source": "b",
        "position": 0,
        "detail": "d",
        "excerpt": "e" * 200,
    }
    assert [tally_from_row(json.loads(json.dumps(tally_row(one)))) for one in found] == found


ROWS = st.lists(
    st.tuples(st.sampled_from("rq"), st.sampled_from("xyz"), st.just("a"), st.integers(0, 9)),
    max_size=8,
)


@given(ROWS, ROWS)
def test_added_tallies_count_as_one(left, right):
    added = add_tallies([*tally(rejects(*left)), *tally(rejects(*right))])
    whole = tally(rejects(*left, *right))
    assert [(one.stage, one.reason, one.records, one.bytes) for one in added] == [
        (one.stage, one.reason, one.records, one.bytes) for one in whole
    ]
    assert all(len(one.examples) == min(one.records, EXAMPLES) for one in added)


MIXED = st.lists(
    st.tuples(
        st.sampled_from("rq"), st.sampled_from("xy"), st.sampled_from("ab"), st.integers(0, 5)
    ),
    max_size=12,
)


@given(st.lists(MIXED, max_size=4), st.sampled_from([0, 1000, 3000, 10**9]))
def test_the_size_of_pieces_decides_no_byte(batches, piece_bytes):
    whole = rejects(*(row for batch in batches for row in batch))
    details = pa.array([str(number) for number in range(whole.num_rows)], pa.string())
    whole = whole.set_column(2, "detail", details)  # equal origins in the order of arrival
    with tempfile.TemporaryDirectory() as folder:
        pieces, begin = RejectPieces(Path(folder), piece_bytes), 0
        for batch in batches:
            pieces.add(whole.slice(begin, len(batch)))
            begin += len(batch)
        assert pieces.write("p") == tally(whole)
        written = {path.parent.name: path.read_bytes() for path in Path(folder).glob("*/p.*")}
        assert len(list(Path(folder).iterdir())) == len(written)
    rows = sort_rejects(whole).to_pylist()
    expected = {
        stage: b"".join(orjson.dumps(row) + b"\n" for row in rows if row["stage"] == stage)
        for stage in {row["stage"] for row in rows}
    }
    assert written == {name: gzip.compress(text, 6, mtime=0) for name, text in expected.items()}


def test_members_of_many_blocks_are_those_of_one(tmp_path):
    """As a compressor sees them too: a piece of 5,000 rows, and one of each 700."""
    whole = rejects(*[("read", f"r{i % 7}", "a", i * 7919 % 5000) for i in range(5000)])
    (tmp_path / "one").mkdir()
    write_rejects(tmp_path / "one", "p", whole)
    (tmp_path / "many").mkdir()
    pieces = RejectPieces(tmp_path / "many", piece_bytes=0)
    for begin in range(0, 5000, 700):
        pieces.add(whole.slice(begin, 700))
    pieces.write("p")
    one, many = (tmp_path / name / "read" / "p.jsonl.gz" for name in ("one", "many"))
    assert one.read_bytes() == many.read_bytes()
    assert origins(one) == [("a", position) for position in range(5000)]
