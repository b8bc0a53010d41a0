import gzip
import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import REJECTS
from pipeline.rejects import (
    EXAMPLES,
    add_tallies,
    join_rejects,
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
