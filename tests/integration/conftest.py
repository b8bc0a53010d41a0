"""A small corpus, its build, and how builds are compared: by every byte that is promised."""

import hashlib
import json
import random

import pytest

WORDS = [
    "the",
    "and",
    "that",
    "with",
    "have",
    "river",
    "mountain",
    "letter",
    "window",
    "garden",
    "answer",
    "morning",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Two files: 400 documents of 40 to 90 words, 20 copies, a bad line."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(40, 90))) + f" {i}" for i in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(lines[:250] + lines[:10]) + "\n")
    (folder / "b.jsonl").write_text("\n".join([*lines[250:], *lines[5:15], "{bad"]) + "\n")
    return folder


@pytest.fixture(scope="session")
def config():
    """`config(corpus, dataset_dir, "key=value")`: of a build in this process, of small shards."""
    from configs import load
    from pipeline.config import PipelineConfig

    small = [
        "corpus.format=jsonl",
        "num_workers=1",
        "shards.target_mib=0.02",
        "shards.block_tokens=2000",
        "shards.chunk_mib=0.01",
    ]

    def make(corpus, dataset_dir, *overrides):
        trains = not any(word.startswith("tokenizer.kind=") for word in overrides)
        size = ["tokenizer.vocab_size=300"] if trains else []
        places = [f"dataset_dir={dataset_dir}", f"corpus.path=[{corpus}]"]
        return load(PipelineConfig, None, [*places, *small, *size, *overrides])

    return make


@pytest.fixture(scope="session")
def built(config, corpus, tmp_path_factory):
    """A dataset of the corpus; never changed by a test."""
    from pipeline.build import build

    return build(config(corpus, tmp_path_factory.mktemp("built") / "dataset"))


@pytest.fixture(scope="session")
def digests():
    """`digests(dataset_dir)`: sha256 of everything whose bytes are promised."""

    def sums(folder):
        kept = [*folder.glob("*.tar"), *folder.glob("*.idx"), *folder.rglob("*.gz")]
        kept += [folder / "manifest.json", folder / "tokenizer.json"]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}

    return sums
