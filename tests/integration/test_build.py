"""Whole builds from small corpora: what is in a dataset, and the same bytes on every way."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
import xxhash
from tokenizers import Tokenizer

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.hashes import split_hashes
from pipeline.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]


def test_every_good_document_is_in_one_split_once(built, corpus):
    train, validation = documents_of(built, "train"), documents_of(built, "validation")
    assert len(read_manifest(built).splits["train"]) > 3
    assert sorted(train + validation) == sorted(good(corpus_texts(corpus)))


def test_report_adds_up(built, corpus):
    report = json.loads((built / "report.json").read_text())
    first, last = report["funnel"][0], report["funnel"][-1]
    assert (first["stage"], first["records_in"]) == ("read", 421)
    for before, after in zip(report["funnel"], report["funnel"][1:], strict=False):
        assert (before["records_out"], before["bytes_out"]) == (
            after["records_in"],
            after["bytes_in"],
        )
    assert last["records_out"] == sum(one["documents"] for one in report["splits"].values())
    assert last["bytes_out"] == sum(one["text_bytes"] for one in report["splits"].values())
    assert sum(report["lengths"]) == last["records_out"]
    assert first["records_in"] - last["records_out"] == sum(
        one["records"] for one in report["rejects"]
    )


def test_rejects_hold_every_row_that_the_report_counts(built):
    report = json.loads((built / "report.json").read_text())
    found = {}
    for path in (built / "rejects").iterdir():
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            assert f"{row['stage']}.jsonl.gz" == path.name
            key = (row["stage"], row["reason"])
            found[key] = found.get(key, 0) + 1
    assert found == {(one["stage"], one["reason"]): one["records"] for one in report["rejects"]}
    assert found["read", "invalid_json"] == 1
    assert found["deduplicate", "duplicate"] > 0


def test_the_copy_in_the_first_file_stays(built):
    rows = gzip.decompress((built / "rejects" / "deduplicate.jsonl.gz").read_bytes()).splitlines()
    details = [json.loads(row)["detail"] for row in rows]
    assert all(detail.startswith("same text as a.jsonl at ") for detail in details)


def test_folder_holds_what_the_design_lists(built):
    manifest = read_manifest(built)
    shards = {shard.name for shards in manifest.splits.values() for shard in shards}
    expected = {"manifest.json", "tokenizer.json", "config.yaml", "report.json", "report.html"}
    expected |= {"README.md", "rejects", ".nv-meta", "train.wids.json", "validation.wids.json"}
    expected |= shards | {f"{name}.idx" for name in shards}
    assert {path.name for path in built.iterdir()} == expected


@pytest.mark.parametrize(
    ("overrides", "spills"),
    [((), False), (("num_workers=2",), True), (("num_workers=2",), False)],
    ids=["payload in GroupByKey", "two processes", "two processes, payload in GroupByKey"],
)
@pytest.mark.slow
def test_same_bytes_on_every_way(config, digests, built, corpus, tmp_path, overrides, spills):
    other = build(config(corpus, tmp_path / "dataset", *overrides), spills=spills)
    assert digests(other) == digests(built)


def test_same_bytes_from_a_moved_corpus(config, digests, built, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    other = build(config(moved, tmp_path / "dataset"))
    assert digests(other) == digests(built)


def test_another_seed_gives_another_order_of_the_same_documents(config, built, corpus, tmp_path):
    other = build(config(corpus, tmp_path / "dataset", "shuffle_seed=1"))
    ours, theirs = documents_of(built, "train"), documents_of(other, "train")
    assert ours != theirs
    assert sorted(ours) == sorted(theirs)


def test_exact_number_of_validation_documents(config, corpus, tmp_path):
    dataset_dir = build(config(corpus, tmp_path / "dataset", "split.documents=17"))
    validation = documents_of(dataset_dir, "validation")
    assert len(validation) == len(set(validation)) == 17
    assert not set(validation) & set(documents_of(dataset_dir, "train"))


def test_exact_number_gives_the_same_bytes_with_payload_in_group_by_key(
    config, digests, corpus, tmp_path
):
    one = build(config(corpus, tmp_path / "one", "split.documents=17"))
    other = build(config(corpus, tmp_path / "other", "split.documents=17"), spills=False)
    assert digests(one) == digests(other)


def test_without_deduplication_copies_stay(config, corpus, tmp_path):
    dataset_dir = build(
        config(corpus, tmp_path / "dataset", "deduplicate=false", "split.fraction=0")
    )
    kept = [text for text in corpus_texts(corpus) if len(text.split()) >= 50]
    assert sorted(documents_of(dataset_dir, "train")) == sorted(kept)
    assert list(read_manifest(dataset_dir).splits) == ["train"]


def test_a_file_url_is_its_path(config, digests, corpus, built, tmp_path):
    made = build(config(corpus, f"file://{tmp_path}/dataset"))
    assert made == tmp_path / "dataset"
    assert digests(made) == digests(built)


def test_one_document(config, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n')
    loose = ["tokenizer.kind=characters", "quality.enabled=false", "split.fraction=0"]
    dataset_dir = build(config(path, tmp_path / "dataset", *loose))
    assert documents_of(dataset_dir, "train") == ["too short"]


def test_empty_files_beside_full_ones(config, digests, corpus, built, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "corpus")
    (moved / "c.jsonl").write_text("")
    dataset_dir = build(config(moved, tmp_path / "dataset"))
    assert [digests(dataset_dir)[name] for name in ("train-000000.tar", "manifest.json")] == [
        digests(built)[name] for name in ("train-000000.tar", "manifest.json")
    ]


def test_validation_is_what_the_split_hash_says(built):
    """No document of train has a split hash below the threshold of one percent."""
    manifest = read_manifest(built)
    assert manifest.config["split"] == {"fraction": 0.01, "documents": None, "seed": 0}

    def hashes(split):
        keys = [xxhash.xxh3_128_digest(text.encode()) for text in documents_of(built, split)]
        return split_hashes(pa.array(keys, pa.binary(16)), 0)

    threshold = np.uint64(int(0.01 * 2**64))
    assert (hashes("train") >= threshold).all()
    assert (hashes("validation") < threshold).all()


@pytest.mark.slow
def test_hugging_face_datasets_reads_the_built_folder(built, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(str(built), cache_dir=str(tmp_path))
    manifest = read_manifest(built)
    assert set(loaded) == set(manifest.splits) == {"train", "validation"}
    for split, shards in manifest.splits.items():
        urls = [str(built / shard.name) for shard in shards]
        expected = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        assert [row["__key__"] for row in loaded[split]] == [one["__key__"] for one in expected]
        for row, one in zip(loaded[split], expected, strict=True):
            assert row["tokens.npy"] == one["tokens.npy"].tolist()
            assert row["docs.npy"] == one["docs.npy"].tolist()
            assert row["json"] == one["json"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:String specifications:UserWarning")  # wids warns of its default
def test_wids_reads_the_built_folder(built, tmp_path):
    from wids import ShardListDataset

    manifest = read_manifest(built)
    for split, shards in manifest.splits.items():
        urls = [str(built / shard.name) for shard in shards]
        expected = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        index = str(built / f"{split}.wids.json")
        found = ShardListDataset(index, cache_dir=str(tmp_path))
        assert len(found) == len(expected) == sum(shard.samples for shard in shards)
        for place in reversed(range(len(found))):  # at random, as it is made for
            sample, one = found[place], expected[place]
            assert sample["__key__"] == one["__key__"]
            assert np.array_equal(sample[".tokens.npy"], one["tokens.npy"])
            assert np.array_equal(sample[".docs.npy"], one["docs.npy"])
            assert sample[".json"] == one["json"]


def test_config_yaml_builds_the_same_dataset(digests, built, tmp_path):
    again = load(PipelineConfig, built / "config.yaml", [f"dataset_dir={tmp_path / 'dataset'}"])
    other = build(again)
    assert digests(other) == digests(built)


def test_the_shipped_corpus(tmp_path):
    path = ROOT / "configs" / "pipeline" / "tiny_shakespeare.yaml"
    dataset_dir = build(load(PipelineConfig, path, [f"dataset_dir={tmp_path / 'dataset'}"]))
    manifest = read_manifest(dataset_dir)
    assert manifest.tokenizer.vocab_size == 66  # 65 characters and the end of document
    tokens = {
        split: sum(shard.tokens for shard in shards) for split, shards in manifest.splits.items()
    }
    assert sum(tokens.values()) == 1_108_171
    assert 0.05 < tokens["validation"] / tokens["train"] < 0.2


def documents_of(dataset_dir, split):
    """Text of each document of a split, joined over blocks."""
    manifest = read_manifest(dataset_dir)
    tokenizer = Tokenizer.from_str((dataset_dir / "tokenizer.json").read_text())
    texts = []
    for shard in manifest.splits[split]:
        samples = webdataset.WebDataset(str(dataset_dir / shard.name), shardshuffle=False).decode()
        tokens = np.concatenate([sample["tokens.npy"] for sample in samples])
        ends = np.flatnonzero(tokens == manifest.tokenizer.end_of_document)
        assert ends[-1] == len(tokens) - 1
        texts += [tokenizer.decode(part[:-1]) for part in np.split(tokens, ends[:-1] + 1)[:1]]
        texts += [tokenizer.decode(part[1:-1]) for part in _tails(tokens, ends)]
    return texts


def _tails(tokens, ends):
    return [tokens[a : b + 1] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def corpus_texts(corpus):
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines if line != "{bad"]


def good(texts):
    return {text for text in texts if len(text.split()) >= 50}


def test_characters_of_rejected_documents_alone_are_no_tokens(tmp_path):
    """They come first, where the encoder is checked."""
    good = "These longer sentences have the words that English texts have to have. " * 20
    texts = ["¤ ¥ §", *(f"{number} {good}" for number in range(30))]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [f"corpus.path=[{corpus}]", "corpus.format=jsonl", f"dataset_dir={tmp_path}/d"]
    words += ["tokenizer.kind=characters", "quality.enabled=true", "split.documents=3"]
    dataset = build(load(PipelineConfig, None, words))
    report = json.loads((dataset / "report.json").read_text())
    assert report["rejects"][0]["records"] == 1
    vocabulary = json.loads((dataset / "tokenizer.json").read_text())["model"]["vocab"]
    assert "¤" not in vocabulary and "T" in vocabulary
