import random

import pyarrow as pa

from pipeline.batch import DOCUMENTS, REJECTS, Batch, Count
from pipeline.funnel import SUMMARY_REASONS, Funnel, add_funnels, batch_funnel, nothing_left
from pipeline.rejects import Tally


def batch_of(portion, *positions, reason="gopher_short_doc"):
    rows = [
        {
            "stage": "quality",
            "reason": reason,
            "detail": "12 words",
            "source": f"{portion}.txt",
            "position": position,
            "bytes": 5,
            "excerpt": "",
        }
        for position in positions
    ]
    documents = pa.RecordBatch.from_pylist([], schema=DOCUMENTS)
    rejects = pa.RecordBatch.from_pylist(rows, schema=REJECTS)
    num = len(positions)
    counts = (Count("read", num + 1, 9, num + 1, 8), Count("quality", num + 1, 8, 1, 3))
    return Batch(portion, documents, rejects, counts, True)


BATCHES = [batch_of(0, 40, 50), batch_of(1, 7), batch_of(0, 10), batch_of(2), batch_of(0, 30, 20)]


def example(portion, position):
    return {
        "source": f"{portion}.txt",
        "position": position,
        "detail": "12 words",
        "excerpt": "",
    }


EXPECTED = Funnel(
    counts=(Count("read", 11, 45, 11, 40), Count("quality", 11, 40, 5, 15)),
    tallies=(
        Tally(
            "quality",
            "gopher_short_doc",
            6,
            30,
            tuple(example(0, position) for position in (10, 20, 30)),
        ),
    ),
)


def test_sums_over_batches_in_any_order():
    for seed in range(5):
        batches = random.Random(seed).sample(BATCHES, len(BATCHES))
        assert add_funnels(map(batch_funnel, batches)) == EXPECTED


def test_sums_of_sums():
    parts = [Funnel((Count("read", 1, 2, 3, 4),)), Funnel(), Funnel((Count("read", 5, 6, 7, 8),))]
    assert add_funnels(parts) == Funnel((Count("read", 6, 8, 10, 12),))
    assert add_funnels([]) == Funnel()


def test_the_sentence():
    assert nothing_left((), ()) == "no documents are left (nothing was read)."
    assert nothing_left(EXPECTED.counts, EXPECTED.tallies) == (
        "no documents are left (read 11 -> 11, quality 11 -> 5). "
        "gopher_short_doc 6 (first 0.txt at 10: 12 words)"
    )


def test_the_most_frequent_reasons_are_named():
    tallies = [Tally("quality", f"r{i}", i, 0, (example(0, i),)) for i in range(1, 9)]
    said = nothing_left((), tallies)
    assert [f"r{i} {i} (first" in said for i in range(1, 9)] == [False] * 3 + [True] * 5
    assert said.index("r8") < said.index("r4")
    assert SUMMARY_REASONS == 5
