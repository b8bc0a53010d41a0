from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import REJECTS
from pipeline.decide import Terms, decide, in_class_order
from pipeline.exclude import Excluded
from pipeline.portions import PortionSums, place, read_record, without_excluded
from pipeline.split import Candidates, SplitConfig
from pipeline.work import WorkFolder


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(str(tmp_path / ".work"))
    folder.create()
    return folder


def write(work, portion, *, train=100, records=100, bad=0, reason="invalid_json", split=None):
    """A finished portion."""
    sums = PortionSums(place(split or SplitConfig(), shuffle_seed=0, partition_bits=12))
    sums.histogram[0, portion] = train
    sums.counts = {"read": [records, 1000, records - bad, 900]}
    rows = [
        {
            "stage": "read",
            "reason": reason,
            "detail": "bad luck",
            "source": f"{portion}.jsonl",
            "position": 7 * i,
            "bytes": 5,
            "excerpt": "",
        }
        for i in range(bad)
    ]
    sums.rejects = [pa.RecordBatch.from_pylist(rows, schema=REJECTS)]
    if split:
        hashes = np.array([10 + portion, 20], np.uint64)
        tokens = np.array([30, 1])
        sums.candidates = Candidates(hashes, np.array([portion, portion]), tokens)
    sums.write(work, portion, f"print {portion}")


def terms(work, *, max_bad_fraction=0.01, split=None, corpus_bytes=10_000):
    return Terms(
        work=work,
        placement=place(split or SplitConfig(), shuffle_seed=0, partition_bits=12),
        num_portions=2,
        corpus_bytes=corpus_bytes,
        target_weight=1000,
        max_bad_fraction=max_bad_fraction,
        config_hash="c",
    )


def test_portions_add_up(work):
    write(work, 0, records=10, bad=0)
    write(work, 1, records=90, bad=1)
    decision = decide(terms(work))
    assert [(one.records_in, one.records_out) for one in decision.counts] == [(100, 99)]
    assert [one.records for one in decision.tallies] == [1]
    (shard,) = decision.plan.shards
    assert (shard.name, shard.weight) == ("train-000000", 200)


def test_what_a_portion_left_for_a_comparison_must_not_be_lost(work):
    """Without it the plan would count documents that are out."""
    write(work, 0)
    record = replace(read_record(work.portion(0)), sketch_bytes=9)
    with pytest.raises(AssertionError, match="portion 0 has lost"):
        without_excluded(record, terms(work).placement, Excluded.none(), None)


def test_the_fingerprint_changes_with_any_portion(work):
    write(work, 0)
    write(work, 1)
    before = decide(terms(work)).plan.shards[0].fingerprint
    assert decide(terms(work)).plan.shards[0].fingerprint == before
    sums = PortionSums(terms(work).placement)
    sums.histogram[0, 1] = 100
    sums.rejects = [pa.RecordBatch.from_pylist([], schema=REJECTS)]
    sums.write(work, 1, "another print")
    assert decide(terms(work)).plan.shards[0].fingerprint != before


def test_unreadable_records_are_summed_up(work):
    write(work, 0, bad=3)
    write(work, 1, bad=4, reason="truncated_file")
    with pytest.raises(
        ValueError,
        match=r"7 of 200 records \(3.50%\) and 0.20% of the corpus bytes could not be read",
    ) as raised:
        decide(terms(work))
    message = str(raised.value)
    assert (
        "allows 1.00%: truncated_file 4 (first 1.jsonl at 0: bad luck); invalid_json 3" in message
    )
    assert "max_bad_fraction=0.0351" in message
    assert decide(terms(work, max_bad_fraction=0.0351)).plan.shards


@pytest.mark.parametrize("reason", ["truncated_file", "unreadable_file"])
def test_a_lost_file_counts_by_its_bytes(work, reason):
    """Two rejects of 2,000 records lost 10 bytes of 100."""
    write(work, 0, records=1000, bad=1, reason=reason)
    write(work, 1, records=1000, bad=1, reason=reason)
    expected = (
        r"2 of 2,000 records \(0.10%\) and 10.00% of the corpus bytes could not be read, .*"
        rf"{reason} 2 \(first 0.jsonl at 0: bad luck; also 1.jsonl\).* max_bad_fraction=0.1001:"
    )
    with pytest.raises(ValueError, match=expected):
        decide(terms(work, corpus_bytes=100))
    assert decide(terms(work, corpus_bytes=100, max_bad_fraction=0.1001)).plan.shards
    assert decide(terms(work, corpus_bytes=1000)).plan.shards


def test_the_advice_is_a_value_that_is_allowed(work):
    write(work, 0, records=10, bad=10)
    write(work, 1, records=0)
    with pytest.raises(ValueError, match=r"with max_bad_fraction=1\.0000:"):
        decide(terms(work))
    assert decide(terms(work, max_bad_fraction=1)).plan.shards


def test_filtered_records_are_not_bad_ones(work):
    write(work, 0, bad=50, reason="gopher_short_doc")
    write(work, 1)
    assert decide(terms(work, max_bad_fraction=0.0)).plan.shards


def test_an_exact_number_moves_its_tokens_to_validation(work):
    """Split hashes 10, 11 and 20: the two smallest take 30 tokens out of each portion."""
    split = SplitConfig(documents=2)
    write(work, 0, split=split)
    write(work, 1, split=split)
    plan = decide(terms(work, split=split)).plan
    assert plan.split_threshold == 12
    assert {shard.name: shard.weight for shard in plan.shards} == {
        "train-000000": 140,
        "validation-000000": 60,
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"dog", "cat", "10"}, ["10", "cat", "dog"]),
        ({str(number) for number in range(12)}, [str(number) for number in range(12)]),
        ({"1", "01", "2", "-1"}, ["-1", "01", "1", "2"]),
        ({"1", "01", "2"}, ["01", "1", "2"]),
        (set(), []),
    ],
)
def test_classes_are_in_order(names, expected):
    assert in_class_order(names) == expected


def test_globs_that_match_nothing(work):
    write(work, 0)
    write(work, 1)
    with pytest.raises(ValueError, match="split.validation_paths: a, b matches none"):
        decide(replace(terms(work), validation_paths=("a", "b")))


def test_nothing_left(work):
    write(work, 0, train=0, bad=100, reason="gopher_short_doc")
    write(work, 1, train=0, records=0)
    expected = r"no documents are left \(read 100 -> 0\). gopher_short_doc 100 \(first 0.jsonl at 0"
    with pytest.raises(ValueError, match=expected):
        decide(terms(work))
