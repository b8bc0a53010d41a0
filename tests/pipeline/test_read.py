"""The first stage, by piping a list of portions."""

import re
import socket

import pytest

from pipeline.corpus import plan_portions
from pipeline.read import ReadCorpus, read_portion
from pipeline.readers import jsonl
from pipeline.refused import RefusedError


def test_every_portion_gives_its_documents_and_one_last_batch(tmp_path):
    line = b'{"text": "' + b"x" * 500_000 + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(line * 4)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "b"}\nbad\n')
    (tmp_path / "c.jsonl").touch()
    config = jsonl.Config(path=(str(tmp_path),), portion_mib=1)
    portions = plan_portions(jsonl, config)
    assert len(portions) == 4
    batches = portions | ReadCorpus(format="jsonl", config=config)
    found = sorted((batch.portion, batch.last, *_content(batch)) for batch in batches)
    size = len(line)
    assert found == [
        (0, True, [("a.jsonl", 0), ("a.jsonl", size)], []),
        (1, True, [("a.jsonl", 2 * size), ("a.jsonl", 3 * size)], []),
        (2, True, [("b.jsonl", 0)], [("invalid_json", "b.jsonl", 14)]),
        (3, True, [], []),
    ]


def test_a_machine_that_does_not_see_the_corpus_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    config = jsonl.Config(path=(str(tmp_path),))
    (portion,) = plan_portions(jsonl, config)
    path.unlink()
    told = f"^a worker on {socket.gethostname()} does not see {re.escape(str(path))}, which was"
    with pytest.raises(RefusedError, match=told):
        list(read_portion(portion, format="jsonl", config=config))


def _content(batch):
    documents = batch.documents.to_pylist()
    rejects = batch.rejects.to_pylist()
    return (
        [(row["source"], row["position"]) for row in documents],
        [(row["reason"], row["source"], row["position"]) for row in rejects],
    )
