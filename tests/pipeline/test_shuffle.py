"""Grouping by shard: both ways bring the same documents to the same shard."""

import pickle
from dataclasses import replace
from functools import partial

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline.batch import ENCODED, REJECTS, Batch, Count
from pipeline.plan import plan_shards
from pipeline.portions import PortionSums, place, read_record
from pipeline.rejects import RejectPieces
from pipeline.shuffle import GroupByShard, _finish, _SpillPortion, _without_payload, cut_by_shard
from pipeline.spills import ShuffledDocuments, SpilledDocuments, as_rows, placed_documents
from pipeline.split import SplitConfig, validation_mask
from pipeline.work import WorkFolder

PLACEMENT = place(SplitConfig(fraction=0.3), shuffle_seed=7, partition_bits=12)


def batch(portion, texts, *, first=0, last=True):
    """Encoded documents; the tokens of a text are its bytes and a 0."""
    columns = [
        [f"{portion}.jsonl"] * len(texts),
        range(first, first + len(texts)),
        [xxhash.xxh3_128_digest(text) for text in texts],
        [len(text) for text in texts],
        [len(text) + 1 for text in texts],
        [np.array([*text, 0], np.uint16).tobytes() for text in texts],
    ]
    arrays = [pa.array(cells, field.type) for cells, field in zip(columns, ENCODED, strict=True)]
    documents = pa.RecordBatch.from_arrays(arrays, schema=ENCODED)
    size = sum(map(len, texts))
    counts = (Count("read", len(texts), size, len(texts), size),)
    return Batch(portion, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), counts, last)


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(str(tmp_path / ".work"))
    folder.create()
    return folder


BATCHES = [
    batch(0, [b"one %d" % i for i in range(50)], last=False),
    batch(0, [b"two %d" % i for i in range(30)], first=50),
    batch(1, [b"one %d" % i for i in range(10)]),
    batch(2, []),
]


def plan_of(work):
    records = [read_record(work.portion(i)) for i in range(3)]
    return plan_shards(
        sum(record.histogram for record in records),
        split_threshold=int(0.3 * 2**64),
        target_weight=100,
        fingerprint="f",
        spills=tuple(name for record in records for name in record.spills),
    )


def group(work, *, spills):
    """Names of shards with their rows, by the stage."""
    collected = work.root / f"rows-{spills}"
    collected.mkdir()
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([BATCHES])
            | beam.FlatMap(list)
            | GroupByShard(
                work=work,
                placement=PLACEMENT,
                fingerprint="print {}".format,
                make_plan=lambda _: plan_of(work),
                schema=ENCODED,
                spills=spills,
            )
            | beam.MapTuple(
                lambda shard, pieces: (collected / shard.name).write_text(
                    "\n".join(
                        sorted(
                            str((row["hash"], row["source"], row["position"], row["payload"]))
                            for piece in pieces
                            for row in chosen(piece, shard).to_pylist()
                        )
                    )
                )
            )
        )
    return {path.name: path.read_text() for path in collected.iterdir()}


def chosen(piece, shard):
    mask = validation_mask(piece, seed=0, threshold=shard.split_threshold)
    return piece.filter(pa.array(mask == (shard.split == "validation")))


def test_both_ways_bring_the_same_documents_to_the_same_shard(work):
    by_spills, by_key = group(work, spills=True), group(work, spills=False)
    assert by_spills == by_key
    assert len(by_spills) > 4
    assert sum(text.count("\n") + 1 for text in by_spills.values()) == 90


def test_a_finished_portion_has_its_record(work):
    group(work, spills=True)
    record = read_record(work.portion(0))
    assert (record.portion, record.fingerprint) == (0, "print 0")
    assert record.counts == (Count("read", 80, 460, 80, 460),)
    assert record.histogram.sum() == 460 + 80
    assert record.spills == ("000000-0.arrow",)
    assert read_record(work.portion(2)).spills == ()


def spill(work, batches, monkeypatch=None):
    stage = _SpillPortion(work, PLACEMENT, "fg".__getitem__)
    finished = [portion for one in batches for portion in stage.process(one)]
    stage.finish_bundle()
    return finished


def test_spills_are_sorted_and_cut_by_ranges(work, monkeypatch):
    monkeypatch.setattr("pipeline.shuffle.SPILL_BYTES", 100)
    assert spill(work, BATCHES[:2]) == [0]
    names = read_record(work.portion(0)).spills
    assert names == ("000000-0.arrow", "000000-1.arrow")
    everything = [
        row
        for first, stop in ((0, 1000), (1000, 1001), (1001, 4096))
        for piece in SpilledDocuments(str(work.spills), names, 12, first, stop)
        for row in piece.to_pylist()
    ]
    assert sorted(row["position"] for row in everything) == list(range(80))
    for piece in SpilledDocuments(str(work.spills), names, 12, 0, 4096):
        hashes = piece.column("hash").to_pylist()
        assert hashes == sorted(hashes)
    (middle,) = SpilledDocuments(str(work.spills), names[:1], 12, 1000, 3000)
    assert all(1000 <= value >> 52 < 3000 for value in middle.column("hash").to_pylist())
    text = {row["position"]: row["payload"] for row in everything}[3]
    assert np.frombuffer(text, np.uint16).tolist() == [*b"one 3", 0]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([batch(0, [b"a"], last=False), batch(1, [b"b"])], "batches of two portions are mixed"),
        ([batch(0, [b"a"], last=False)], "portion 0 has no last batch"),
        ([batch(0, [b"a"], first=5, last=False), batch(0, [b"b"])], "came after"),
    ],
)
def test_batches_out_of_order_stop_the_build(work, batches, message):
    with pytest.raises(AssertionError, match=message):
        spill(work, batches)


def test_cut_by_shard_agrees_with_the_plan(work):
    sums = PortionSums(PLACEMENT)
    for one in BATCHES:
        sums.add(one)
    plan = plan_shards(
        sums.histogram, split_threshold=int(0.3 * 2**64), target_weight=100, fingerprint="f"
    )
    tokens = [0] * len(plan.shards)
    for one in BATCHES:
        for index, row in cut_by_shard(one, plan, PLACEMENT):
            tokens[index] += len(row[-1]) // 2
    assert tokens == [shard.weight for shard in plan.shards]


def test_rows_of_a_shuffle_become_documents_again():
    placed = placed_documents(BATCHES[0], np.arange(50, dtype=np.uint64))
    rows = list(as_rows(placed))
    assert rows[3] == (
        3,
        "0.jsonl",
        3,
        xxhash.xxh3_128_digest(b"one 3"),
        5,
        6,
        b"o\0n\0e\0 \0003\0\0\0",
    )
    (back,) = ShuffledDocuments(rows, ENCODED)
    assert back.equals(placed)
    many = list(ShuffledDocuments(rows * 41, ENCODED))
    assert [piece.num_rows for piece in many] == [1024, 1024, 2]
    assert list(ShuffledDocuments([], ENCODED)) == []


def test_sums_of_a_batch_travel_without_empty_cells():
    wide = place(SplitConfig(fraction=0.3), shuffle_seed=7, partition_bits=16)
    sums = PortionSums(wide)
    sums.add(BATCHES[0])
    packed = pickle.dumps(sums)
    assert len(packed) < 5000
    back = pickle.loads(packed)
    assert (back.histogram == sums.histogram).all() and back.histogram.shape == (2, 2**16)
    assert (back.placement, back.counts, back.classes) == (wide, sums.counts, set())


def test_sums_of_a_portion_do_not_depend_on_the_order_of_batches(work):
    exact = place(SplitConfig(documents=5), shuffle_seed=7, partition_bits=12)
    parts = []
    for one in BATCHES:
        part = PortionSums(exact)
        part.add(one)
        parts.append(part)
    written = []
    for order in (parts, parts[::-1]):
        total = PortionSums(exact)
        for part in order:
            total.merge(part)
        total.write(work, 0, "f")
        written.append(work.portion(0).read_bytes())
    assert written[0] == written[1]


def test_rejects_are_handed_on_as_they_come(work, monkeypatch):
    """The local runner holds none of them in its sums, and both ways write the same bytes."""
    parts = []
    for one in BATCHES[:2]:
        rows = [
            {**dict.fromkeys(REJECTS.names, "r"), "position": 9 - i, "bytes": 1} for i in range(9)
        ]
        parts.append(replace(one, rejects=pa.RecordBatch.from_pylist(rows, schema=REJECTS)))
    monkeypatch.setattr("pipeline.shuffle.RejectPieces", partial(RejectPieces, piece_bytes=0))
    written, member = [], work.rejects / "r" / "portion-000000.jsonl.gz"
    for spill_them in (True, False):
        if spill_them:
            spill(work, parts)
        else:
            sums = [_without_payload(part, PLACEMENT)[1] for part in parts]
            _finish((0, sums), work, PLACEMENT, lambda _: "f")
        tallies = read_record(work.portion(0)).tallies
        written.append((member.read_bytes(), tallies))
        member.unlink()
    assert written[0] == written[1]
    assert [one.records for one in written[0][1]] == [18]
