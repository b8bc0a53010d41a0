"""Whole builds from small corpora: the same bytes on every way, and every bad input explained."""

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
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
from pipeline.index import index_dataset
from pipeline.lock import DatasetLock
from pipeline.manifest import read_manifest
from pipeline.runner import StageError
from pipeline.tar import index_path
from pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[2]
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
    """Two files in four portions' worth of lines: 400 documents, 20 copies, a bad line."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(40, 90))) + f" {i}" for i in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join(lines[:250] + lines[:10]) + "\n")
    (folder / "b.jsonl").write_text("\n".join([*lines[250:], *lines[5:15], "{bad"]) + "\n")
    return folder


def config(corpus, dataset_dir, *overrides):
    return load(
        PipelineConfig,
        None,
        [
            f"dataset_dir={dataset_dir}",
            "corpus.format=jsonl",
            f"corpus.path=[{corpus}]",
            "tokenizer.vocab_size=300",
            "num_workers=1",
            "shards.target_mib=0.02",
            "shards.block_tokens=2000",
            "shards.chunk_mib=0.01",
            *overrides,
        ],
    )


def of_kind(kind):
    """A tokenizer of a kind; one that is not trained has no size to ask for."""
    return (f"tokenizer.kind={kind}", *(["tokenizer.vocab_size=null"] if kind != "train" else []))


def digests(dataset_dir):
    """sha256 of everything whose bytes are promised."""
    kept = [*dataset_dir.glob("*.tar"), *dataset_dir.glob("*.idx"), *dataset_dir.rglob("*.gz")]
    kept += [dataset_dir / "manifest.json", dataset_dir / "tokenizer.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="session")
def built(corpus, tmp_path_factory):
    return build(config(corpus, tmp_path_factory.mktemp("built") / "dataset"))


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
def test_same_bytes_on_every_way(built, corpus, tmp_path, overrides, spills):
    other = build(config(corpus, tmp_path / "dataset", *overrides), spills=spills)
    assert digests(other) == digests(built)


def test_same_bytes_from_a_moved_corpus(built, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    other = build(config(moved, tmp_path / "dataset"))
    assert digests(other) == digests(built)


def test_another_seed_gives_another_order_of_the_same_documents(built, corpus, tmp_path):
    other = build(config(corpus, tmp_path / "dataset", "shuffle_seed=1"))
    ours, theirs = documents_of(built, "train"), documents_of(other, "train")
    assert ours != theirs
    assert sorted(ours) == sorted(theirs)


def test_exact_number_of_validation_documents(corpus, tmp_path):
    dataset_dir = build(config(corpus, tmp_path / "dataset", "split.documents=17"))
    validation = documents_of(dataset_dir, "validation")
    assert len(validation) == len(set(validation)) == 17
    assert not set(validation) & set(documents_of(dataset_dir, "train"))


def test_exact_number_gives_the_same_bytes_with_payload_in_group_by_key(corpus, tmp_path):
    one = build(config(corpus, tmp_path / "one", "split.documents=17"))
    other = build(config(corpus, tmp_path / "other", "split.documents=17"), spills=False)
    assert digests(one) == digests(other)


def test_a_vocabulary_smaller_than_asked_for_is_told(built, corpus, tmp_path, caplog):
    assert "asked for" not in caplog.text
    dataset_dir = build(config(corpus, tmp_path / "dataset", "tokenizer.vocab_size=5000"))
    made = read_manifest(dataset_dir).tokenizer.vocab_size
    assert 300 < made < 5000
    (said,) = [one for one in caplog.messages if "asked for" in one]
    assert said.startswith(f"tokenizer.vocab_size: 5000 tokens asked for, {made} made: nothing is")
    assert "\n" not in said


def test_without_deduplication_copies_stay(corpus, tmp_path):
    dataset_dir = build(
        config(corpus, tmp_path / "dataset", "deduplicate=false", "split.fraction=0")
    )
    kept = [text for text in corpus_texts(corpus) if len(text.split()) >= 50]
    assert sorted(documents_of(dataset_dir, "train")) == sorted(kept)
    assert list(read_manifest(dataset_dir).splits) == ["train"]


def test_a_complete_dataset_is_left_alone(built, corpus, capsys):
    before = digests(built)
    times = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    build(config(corpus, built))
    assert "complete already" in capsys.readouterr().out
    assert digests(built) == before
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == times


def test_another_config_is_refused(built, corpus):
    with pytest.raises(ValueError, match=r"another config; choose another dataset_dir, or delete"):
        build(config(corpus, built, "shuffle_seed=5"))


def test_a_changed_corpus_is_refused(built, corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    (moved / "b.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ValueError, match="of the same config, but its corpus"):
        build(config(moved, built))


@pytest.mark.parametrize(
    "name",
    ["train-000000.tar", "config.yaml", "report.html", "rejects/notes.txt", ".work/notes.txt"],
)
def test_files_of_the_user_are_not_overwritten(corpus, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"precious")
    expected = rf"holds {name.split('/')[0]}, but no manifest.json .*or an empty folder"
    with pytest.raises(ValueError, match=expected):
        build(config(corpus, tmp_path))
    assert path.read_bytes() == b"precious"
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


def test_a_folder_of_a_build_killed_at_its_start_is_taken(corpus, built, tmp_path):
    (tmp_path / ".work").mkdir()
    (tmp_path / ".lock").write_text("1")
    assert digests(build(config(corpus, tmp_path))) == digests(built)


def test_too_many_bad_records_fail_before_writing_and_a_rerun_reuses_reading(
    corpus, tmp_path, monkeypatch
):
    moved = shutil.copytree(corpus, tmp_path / "bad")
    with (moved / "b.jsonl").open("a") as file:
        file.write("{worse\n" * 30)
    dataset_dir = tmp_path / "dataset"
    with pytest.raises(StageError) as raised:
        build(config(moved, dataset_dir))
    message = str(raised.value)
    assert "31 of 451 records (6.87%) could not be read, max_bad_fraction allows 1.00%" in message
    assert "invalid_json 31 (first b.jsonl at " in message
    assert "\n" not in message
    assert "Traceback" in (dataset_dir / ".work" / "error.log").read_text()
    assert not list(dataset_dir.rglob("*.tar"))
    monkeypatch.setattr("pipeline.read.read_portion", _die)  # by a second reading
    build(config(moved, dataset_dir, "max_bad_fraction=0.07"))
    report = json.loads((dataset_dir / "report.json").read_text())
    assert report["funnel"][0]["records_in"] == 451


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_spill_is_made_again(built, corpus, tmp_path, monkeypatch, size):
    dataset_dir = tmp_path / "dataset"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.publish", _die)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, dataset_dir))
    spill = min((dataset_dir / ".work" / "spills").glob("*.arrow"))
    os.truncate(spill, size)
    for row in (dataset_dir / ".work" / "shards").glob("*.json"):
        row.unlink()
    assert digests(build(config(corpus, dataset_dir))) == digests(built)


def test_no_document_left(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n' * 3 + "{bad\n")
    for kind in ("train", "characters"):
        told = r"no documents are left \(read 4 -> 3, normalise 3 -> 3, quality 3 -> 0, .*\)\. "
        told += r"gopher_short_doc 3 \(first a.jsonl at 0: .*\); invalid_json 1 \(first a.jsonl at"
        with pytest.raises(ValueError, match=told):
            build(config(path, tmp_path / kind, *of_kind(kind)))
    loose = [*of_kind("characters"), "quality.enabled=false", "split.documents=1"]
    loose += ["max_bad_fraction=1"]
    with pytest.raises(StageError, match="takes all documents and leaves none to train on"):
        build(config(path, tmp_path / "dataset", *loose))


def test_no_document_left_with_a_tokenizer_given(built, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n' * 3)
    given = [*of_kind("load"), f"tokenizer.path={built / 'tokenizer.json'}"]
    expected = r"no documents are left .*quality 3 -> 0.*gopher_short_doc 3 \(first a.jsonl"
    with pytest.raises(StageError, match=expected):
        build(config(path, tmp_path / "dataset", *given))


def test_a_dataset_inside_of_its_corpus_is_refused(corpus):
    with pytest.raises(ValueError, match="lies in the folder .* of the corpus"):
        build(config(corpus, corpus / "dataset"))


def test_a_file_url_is_its_path(corpus, built, tmp_path):
    made = build(config(corpus, f"file://{tmp_path}/dataset"))
    assert made == tmp_path / "dataset"
    assert digests(made) == digests(built)


def test_one_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "too short"}\n')
    loose = [*of_kind("characters"), "quality.enabled=false", "split.fraction=0"]
    dataset_dir = build(config(path, tmp_path / "dataset", *loose))
    assert documents_of(dataset_dir, "train") == ["too short"]


def test_empty_files_beside_full_ones(corpus, built, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "corpus")
    (moved / "c.jsonl").write_text("")
    dataset_dir = build(config(moved, tmp_path / "dataset"))
    assert [digests(dataset_dir)[name] for name in ("train-000000.tar", "manifest.json")] == [
        digests(built)[name] for name in ("train-000000.tar", "manifest.json")
    ]


def test_a_second_build_of_the_folder_is_refused(corpus, tmp_path):
    with (
        DatasetLock(tmp_path / "dataset"),
        pytest.raises(ValueError, match=rf"another build \(process {os.getpid()}\)"),
    ):
        build(config(corpus, tmp_path / "dataset"))


def test_an_error_in_a_stage_is_one_line(corpus, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(28, "No space left on device", "/disk/spill")

    monkeypatch.setattr("pipeline.shuffle.write_spill", fails)
    with pytest.raises(StageError) as raised:
        build(config(corpus, tmp_path / "dataset"))
    message = str(raised.value)
    assert message.startswith("OSError: [Errno 28] No space left on device: '/disk/spill'")
    assert "free space and run the same command again: what is finished is kept" in message
    assert "\n" not in message


def test_an_outdated_work_folder_is_not_mixed_in(built, corpus, tmp_path, monkeypatch):
    """A build of other shards that died while publishing leaves tars that must go."""
    dataset_dir = tmp_path / "dataset"
    monkeypatch.setattr("pipeline.publish.write_manifest", _die)
    with pytest.raises(KeyboardInterrupt):
        build(config(corpus, dataset_dir, "shards.target_mib=0.005", "shuffle_seed=3"))
    assert len(list(dataset_dir.glob("*.tar"))) > len(list(built.glob("*.tar")))
    monkeypatch.undo()
    build(config(corpus, dataset_dir))
    assert {path.name for path in dataset_dir.iterdir()} == {path.name for path in built.iterdir()}
    assert digests(dataset_dir) == digests(built)


def test_sidecars_of_an_abandoned_split_go(corpus, tmp_path, monkeypatch):
    dataset_dir = tmp_path / "dataset"
    monkeypatch.setattr("pipeline.publish.write_manifest", _die)
    with pytest.raises(KeyboardInterrupt):
        build(config(corpus, dataset_dir))
    assert (dataset_dir / "validation.wids.json").exists()
    monkeypatch.undo()
    assert verify(build(config(corpus, dataset_dir, "split.fraction=0"))) == []


@pytest.mark.parametrize("name", ["train.wids.json", ".nv-meta/.info.json", "train-000000.tar.idx"])
def test_index_verb_removes_what_a_killed_one_left(built, tmp_path, name):
    copy = shutil.copytree(built, tmp_path / "copy")
    left = (copy / name).with_name(f".{Path(name).name}.0a1b2c3d")
    left.write_bytes(b"{")
    index_dataset(copy)
    assert not left.exists()
    assert verify(copy) == []


def _die(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_command_exit_codes(corpus, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True
        )

    path = tmp_path / "c.yaml"
    path.write_text(f"dataset_dir: {tmp_path}/d\ncorpus: {{format: jsonl, path: [/nowhere]}}\n")
    missing = run(str(path), "num_workers=1")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "/nowhere: no such file or folder" in missing.stderr
    unknown = run(str(path), "shuffle_sed=1")
    assert unknown.returncode == 2
    assert "did you mean 'shuffle_seed'" in unknown.stderr


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


def test_index_verb_makes_the_same_files(built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    names = [path for path in copy.rglob("*") if path.suffix == ".idx" or "wids" in path.name]
    names += list((copy / ".nv-meta").iterdir())
    for path in names:
        path.unlink()
    index_dataset(copy)
    for path in names:
        assert path.read_bytes() == (built / path.relative_to(copy)).read_bytes()
    assert index_path(copy / "train-000000.tar").exists()


def test_index_verb_keeps_a_card_and_makes_a_missing_one(built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    written = (copy / "README.md").read_bytes()
    (copy / "README.md").write_bytes(written + b"Mine.")
    index_dataset(copy)
    assert (copy / "README.md").read_bytes() == written + b"Mine."
    (copy / "README.md").unlink()
    index_dataset(copy)
    assert (copy / "README.md").read_bytes() == written


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


def test_config_yaml_builds_the_same_dataset(built, tmp_path):
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


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_one_line(corpus, tmp_path):
    moved = shutil.copytree(corpus, tmp_path / "bad")
    (moved / "c.jsonl").write_text("{worse\n" * 30)
    path = tmp_path / "c.yaml"
    path.write_text(config_yaml(moved, tmp_path / "dataset"))
    command = [sys.executable, "-m", "pipeline", str(path), "num_workers=2"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in failed.stderr.splitlines() if " MB/s" not in line]
    assert failed.returncode == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: 31 of 451 records (6.87%) could not be read")


def config_yaml(corpus, dataset_dir):
    return (
        f"dataset_dir: {dataset_dir}\n"
        f"corpus: {{format: jsonl, path: [{corpus}]}}\n"
        "tokenizer: {vocab_size: 300}\n"
    )
