"""What portions leave for a tokenizer: the same files either way, whole or read again."""

import apache_beam as beam
import pyarrow as pa
import pytest

from pipeline import sample_files
from pipeline.batch import DOCUMENTS, REJECTS, Batch, Count
from pipeline.exclude import read_table
from pipeline.funnel import Funnel
from pipeline.key import add_keys
from pipeline.rejects import tally
from pipeline.sample import CollectCharacters, SampleDocuments
from pipeline.sample_files import KeepSamples, is_whole, read_funnel, sample_path
from pipeline.work import WorkFolder

REJECT = {
    **{"stage": "quality", "reason": "gopher_short_doc", "source": "0.txt", "position": 3},
    **{"text_sha256": "", "bytes": 5, "detail": "1 word", "excerpt": "x"},
}


def batch(portion, first, texts, *, last, rejects=()):
    columns = [
        pa.array([f"{portion}.txt"] * len(texts), pa.string()).dictionary_encode(),
        pa.array(range(first, first + len(texts)), pa.int64()),
        pa.array([text.encode() for text in texts], pa.large_binary()),
    ]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    refused = pa.RecordBatch.from_pylist(list(rejects), schema=REJECTS)
    counts = (Count("read", len(texts) + len(rejects), 9, len(texts), 9),)
    return add_keys(Batch(portion, documents, refused, counts, last))


BATCHES = [
    *(batch(0, 3 * i, [f"a {i} {j}" for j in range(3)], last=i == 39) for i in range(40)),
    batch(1, 0, ["é", "a 0 0"], last=True, rejects=[REJECT]),
    batch(2, 0, [], last=True, rejects=[REJECT, REJECT]),
]
COLLECTORS = [
    CollectCharacters(),
    SampleDocuments(
        sample_bytes=200, portion_bytes={0: 700, 1: 8, 2: 0}.__getitem__, total_bytes=708, seed=3
    ),
]


@pytest.mark.parametrize("collector", COLLECTORS)
def test_both_ways_leave_the_same_of_each_portion(collector, tmp_path):
    found = []
    for in_order in (False, True):
        folder = tmp_path / str(in_order)
        folder.mkdir()
        with beam.Pipeline("FnApiRunner") as pipeline:
            batches = pipeline | beam.Create([BATCHES]) | beam.FlatMap(list)
            _ = batches | KeepSamples(collector, WorkFolder(str(tmp_path)), folder, in_order)
        found.append([read_table(sample_path(folder, number)) for number in range(3)])
        funnels = [read_funnel(sample_path(folder, number)) for number in range(3)]
        assert funnels[0] == Funnel((Count("read", 120, 360, 120, 360),))
        assert funnels[1] == Funnel((Count("read", 3, 9, 2, 9),), tuple(tally(BATCHES[-2].rejects)))
        assert funnels[2] == Funnel((Count("read", 2, 9, 0, 9),), tuple(tally(BATCHES[-1].rejects)))
        assert sorted(folder.iterdir()) == [sample_path(folder, number) for number in range(3)]
    expected = [
        collector.merge([collector.of_batch(one) for one in BATCHES if one.portion == number])[1]
        for number in range(3)
    ]
    assert found == [expected, expected]
    assert collector.of_corpus(expected)


def test_batches_of_two_portions_are_not_taken_for_one(tmp_path):
    """The sample would be another one, and nobody would see it."""
    pipeline = beam.Pipeline("FnApiRunner")
    batches = pipeline | beam.Create([[BATCHES[0], BATCHES[-1]]]) | beam.FlatMap(list)
    _ = batches | KeepSamples(CollectCharacters(), WorkFolder(str(tmp_path)), tmp_path, True)
    with pytest.raises(Exception, match="batches of two portions are mixed"):
        pipeline.run()


def test_a_file_that_is_cut_off_is_read_again(tmp_path):
    path = sample_path(tmp_path, 0)
    assert not is_whole(path)
    part = CollectCharacters().of_batch(BATCHES[0]), Funnel()
    sample_files._keep((0, part), WorkFolder(str(tmp_path)), tmp_path)
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert not is_whole(path)
    path.write_bytes(b"")
    assert not is_whole(path)
