"""What a build says that it needs of the disk is no less than what it takes."""

import random

import orjson
import pytest

from pipeline.build import build
from pipeline.publish import publish
from tests.integration.conftest import WORDS


@pytest.fixture
def short_documents(tmp_path):
    """Of 100 bytes, where the place of a document takes more than its tokens."""
    folder, rng = tmp_path / "corpus", random.Random(0)
    folder.mkdir()
    texts = [f"{' '.join(rng.choices(WORDS, k=15))} {i}" for i in range(10_000)]
    lines = [orjson.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["train", "characters"])
def test_short_documents_take_no_more_than_is_stated(
    config, short_documents, tmp_path, monkeypatch, capsys, kind
):
    taken = []

    def measured(building, destination):  # all spill files and all shards lie there
        files = [path for path in destination.folder.rglob("*") if path.is_file()]
        taken.append(sum(path.stat().st_size for path in files))
        publish(building, destination)

    monkeypatch.setattr("pipeline.build.publish", measured)
    words = [f"tokenizer.kind={kind}", "quality.enabled=false", "shards.target_mib=1"]
    words += ["shards.chunk_mib=1", "shards.block_tokens=100000"]
    words += ["tokenizer.vocab_size=2000"] if kind == "train" else []
    made = config(short_documents, tmp_path / "dataset", *words)
    build(made)
    corpus = sum(path.stat().st_size for path in short_documents.iterdir())
    stated = corpus * made.growth
    assert f"up to {stated / 2**20:.2f} MiB of disk" in capsys.readouterr().err
    assert stated * 0.4 < taken[0] < stated
