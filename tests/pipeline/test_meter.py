"""Progress in bytes as stored, by every format and compression."""

import gzip
import json
import random
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline import byte_range, records
from pipeline.corpus import plan_portions
from pipeline.meter import Meter
from pipeline.readers import jsonl, parquet, text


@given(st.integers(0, 99), st.lists(st.floats(0, 60), max_size=9))
def test_what_is_taken_adds_up_to_the_size(size, read):
    meter = Meter(size)
    taken = []
    for part in read:
        meter.add(part)
        taken.append(meter.take())
        assert sum(taken) == min(size, sum(map(int, read[: len(taken)])))
    assert sum(taken) + meter.take(last=True) == size


def words(seed, size):
    """Text that gzip packs to a third or so, evenly."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(999)]
    return " ".join(rng.choices(vocabulary, k=size // 6))


def write_corpus(folder, name):
    texts = [words(seed, 40_000) for seed in range(30)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=7)
    elif name == "blocks.txt":
        (folder / name).write_text("\n\n".join(texts))
    else:
        compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
        lines = "".join(json.dumps({"more": "x" * 40_000, "text": each}) + "\n" for each in texts)
        (folder / name).write_bytes(compress(lines.encode()))


READERS = {
    "a.jsonl": (jsonl, {}),
    "a.jsonl.gz": (jsonl, {}),
    "a.jsonl.zst": (jsonl, {}),
    "a.parquet": (parquet, {}),
    "blocks.txt": (text, {"documents": "blocks"}),
}


@pytest.mark.parametrize("name", READERS)
def test_each_batch_tells_its_share_of_the_file(tmp_path, name):
    reader, fields = READERS[name]
    write_corpus(tmp_path, name)
    config = reader.Config(path=(str(tmp_path),), **fields)
    portions = plan_portions(reader, config)
    batches = []
    with (
        mock.patch.object(byte_range, "_BLOCK_BYTES", 1 << 12),
        mock.patch.object(records, "BATCH_BYTES", 120_000),
        mock.patch.object(parquet, "BATCH_BYTES", 120_000),
    ):
        for portion in portions:
            read = list(reader.read(portion, config))
            assert sum(batch.read_bytes for batch in read) == portion.bytes
            batches += read
    documents = np.cumsum([batch.documents.num_rows for batch in batches])
    stored = np.cumsum([batch.read_bytes for batch in batches])
    assert documents[-1] == 30
    assert stored[-1] == sum(portion.bytes for portion in portions)
    assert len(batches) >= 8
    shares = np.stack([documents / documents[-1], stored / stored[-1]])
    assert np.abs(shares[0] - shares[1]).max() < 0.05


def test_a_damaged_file_is_read_to_its_end(tmp_path):
    write_corpus(tmp_path, "a.jsonl.gz")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9999])
    config = jsonl.Config(path=(str(path),))
    (portion,) = plan_portions(jsonl, config)
    batches = list(jsonl.read(portion, config))
    assert sum(batch.read_bytes for batch in batches) == path.stat().st_size
