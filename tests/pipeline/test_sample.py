import random

import pyarrow as pa
import pytest

from pipeline import sample
from pipeline.batch import DOCUMENTS, REJECTS, Batch
from pipeline.hashes import shuffle_hashes
from pipeline.key import add_keys, hash_texts
from pipeline.sample import (
    CollectCharacters,
    SampleDocuments,
    batch_characters,
    merge_beginnings,
    portion_quota,
    sample_batch,
    unite_characters,
)


def batch_of(texts, portion=0):
    columns = [
        pa.array(["a.txt"] * len(texts), pa.string()).dictionary_encode(),
        pa.array(range(len(texts)), pa.int64()),
        pa.array([text.encode() for text in texts], pa.large_binary()),
    ]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    rejects = pa.RecordBatch.from_pylist([], schema=REJECTS)
    return add_keys(Batch(portion, documents, rejects, (), True))


PORTIONS = [[f"portion {p} text {i} " + "x" * (i % 7) for i in range(40)] for p in range(4)]
PORTIONS[3] += PORTIONS[0][:10]  # copies in another portion
SIZES = tuple(sum(map(len, texts)) for texts in PORTIONS)


def by_hash(texts, seed):
    """The distinct texts in shuffle order."""
    distinct = sorted(set(texts))
    documents = batch_of(distinct).documents
    hashes = shuffle_hashes(documents.column("key"), seed).tolist()
    return [text for *_, text in sorted(zip(hashes, hash_texts(documents), distinct, strict=True))]


def beginning(texts, limit):
    chosen, size = [], 0
    for text in texts:
        if size >= limit:
            break
        chosen.append(text)
        size += len(text.encode())
    return chosen


def merged_texts(parts):
    return [text.decode() for text in merge_beginnings(parts)[1].column("text").to_pylist()]


@pytest.mark.parametrize("limit", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("seed", [0, 7])
def test_beginning_of_the_union_in_any_grouping(limit, seed):
    parts = [sample_batch(batch_of(texts), limit, seed) for texts in PORTIONS]
    expected = beginning(by_hash(sum(PORTIONS, []), seed), limit)
    assert merged_texts(parts) == expected
    halves = [merge_beginnings(parts[:1]), merge_beginnings(parts[:0:-1])]
    assert merged_texts(halves[::-1]) == expected


def test_beginning_of_nothing():
    limit, rows = merge_beginnings([])
    assert (limit, rows.num_rows) == (0, 0)
    assert merged_texts([(10, rows)]) == []


def test_quotas_are_shares_with_a_margin():
    assert quotas_of((100, 300, 0), 40) == [20, 60, 0]
    assert quotas_of((0,), 40) == [0]


def quotas_of(sizes, sample_bytes):
    total = sum(sizes)
    return [portion_quota(size, total_bytes=total, sample_bytes=sample_bytes) for size in sizes]


def sampled(batches, sample_bytes):
    """Each batch by itself, then those of a portion, then all."""
    collector = SampleDocuments(
        sample_bytes=sample_bytes, portion_bytes=SIZES.__getitem__, total_bytes=sum(SIZES), seed=3
    )
    return collector.of_corpus(rows_of_portions(batches, collector))


def rows_of_portions(batches, collector):
    parts = {}
    for batch in batches:
        parts.setdefault(batch.portion, []).append(collector.of_batch(batch))
    return [collector.merge(of_portion)[1] for of_portion in parts.values()]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_portions_are_merged_in_blocks(monkeypatch, at_once):
    whole = [batch_of(texts, portion) for portion, texts in enumerate(PORTIONS)]
    expected = sampled(whole, 1500)
    monkeypatch.setattr(sample, "MERGED_AT_ONCE", at_once)
    assert sampled(whole[::-1], 1500) == expected


@pytest.mark.parametrize("sample_bytes", [200, 1500, 10**6])
def test_sample_is_the_same_for_any_batches_and_order(sample_bytes):
    quotas = quotas_of(SIZES, sample_bytes)
    candidates = [
        text
        for texts, quota in zip(PORTIONS, quotas, strict=True)
        for text in beginning(by_hash(texts, 3), quota)
    ]
    expected = beginning(by_hash(candidates, 3), sample_bytes)
    whole = [batch_of(texts, portion) for portion, texts in enumerate(PORTIONS)]
    pieces = [
        batch_of(texts[i : i + 9], portion)
        for portion, texts in enumerate(PORTIONS)
        for i in range(0, len(texts), 9)
    ]
    random.Random(0).shuffle(pieces)
    assert sampled(whole, sample_bytes) == expected
    assert sampled(pieces, sample_bytes) == expected


def test_characters_of_a_batch_and_of_all():
    assert batch_characters(batch_of(["ba\n", "", "aé🦊"])) == "\nabé🦊"
    assert batch_characters(batch_of([])) == ""
    assert unite_characters(["ab", "", "bé", "a"]) == "abé"


@pytest.mark.parametrize(("texts", "expected"), [([["ab"], ["bé\n"]], "\nabé"), ([], "")])
def test_characters_of_a_corpus(texts, expected):
    collector = CollectCharacters()
    batches = [batch_of(part, portion // 2) for portion, part in enumerate([*texts, *texts])]
    assert collector.of_corpus(rows_of_portions(batches, collector)) == expected
