from pathlib import Path

import pytest

import configs
from configs import ConfigError, load
from pipeline.config import PipelineConfig, TextShardsConfig, byte_config
from pipeline.corpus import CorpusFile, Portion
from pipeline.fingerprints import (
    portion_fingerprints,
    reading_fingerprint,
    request_fingerprint,
    resources_fingerprint,
)
from pipeline.portions import place
from pipeline.split import SplitConfig

FOLDER = Path(configs.__file__).parent / "pipeline"
MINIMAL = ["dataset_dir=d", "corpus.format=jsonl", "corpus.path=[c]"]
WEBDATASET = ["corpus.format=webdataset", "corpus.path=[c]"]
PLACEMENT = place(SplitConfig(), shuffle_seed=0, partition_bits=12)


def config(*overrides):
    return load(PipelineConfig, None, [*MINIMAL, *overrides])


def portions(**changes):
    values = {"url": "/c/a", "source": "a", "bytes": 9, "version": "1", **changes}
    return [Portion(0, CorpusFile(**values), 0, 9, 9)]


@pytest.mark.parametrize(
    "override",
    [
        "dataset_dir=e",
        "dataset_dir=s3://bucket/e",
        "scratch_dir=s",
        "num_workers=3",
        "max_bad_fraction=0.5",
        "corpus.path=[x]",
    ],
)
def test_what_decides_no_byte(override):
    assert byte_config(config(override)) == byte_config(config())


@pytest.mark.parametrize(
    "override",
    [
        "shuffle_seed=1",
        "deduplicate=false",
        "quality.enabled=false",
        "quality.min_words=3",
        "split.documents=4",
        "shards.block_tokens=7777",
        "corpus.column=body",
        "tokenizer.vocab_size=999",
        "normalise.unicode=NFKC",
    ],
)
def test_what_decides_bytes(override):
    assert byte_config(config(override)) != byte_config(config())
    assert request_fingerprint(config(override), portions()) != request_fingerprint(
        config(), portions()
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_workers=-1"], "num_workers: -1; 0 to 1024 are allowed"),
        (["num_workers=1025"], "num_workers: 1025; 0 to 1024 are allowed"),
        (["max_bad_fraction=2"], "max_bad_fraction: 2.0; 0 to 1"),
        (["shards.target_mib=0.009"], "shards.target_mib: 0.009; a number of at least 0.01"),
        (["shards.target_mib=inf"], "shards.target_mib: inf; a number of at least 0.01"),
        (["shards.chunk_mib=nan"], "shards.chunk_mib: nan; a number of at least 0.01"),
        (["shards.chunk_mib=0.001"], "shards.chunk_mib: 0.001; a number of at least 0.01"),
        (["shards.block_tokens=1023"], "shards.block_tokens: 1023; at least 1024 are allowed"),
        (["quality.max_hash_ratio=nan"], "quality.max_hash_ratio: nan; a number"),
        (["dataset_dir=s3:/bucket/x"], "dataset_dir: s3:/bucket/x is no place for a dataset; a lo"),
        (["dataset_dir=s3://"], "dataset_dir: s3:// is no place for a dataset"),
        (["dataset_dir=zip://x::s3://b/c.zip"], "is no place for a dataset"),
        (
            ["dataset_dir=s3://me:word@bucket/x"],
            "not hold credentials, found s3://me:***@bucket/x; give",
        ),
        (["scratch_dir=s3://bucket/x"], "scratch_dir: s3://bucket/x; a local folder is needed"),
        (["split.fraction=1"], "split.fraction 1.0"),
        (["corpus.format=jsnl"], "did you mean 'jsonl'"),
        (["deduplicates=false"], "did you mean 'deduplicate'"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(ConfigError) as raised:
        config(*overrides)
    assert message in str(raised.value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_yaml_is_a_citable_run(path):
    header = "".join(line for line in path.open() if line.startswith("#"))
    assert path.read_text().startswith("#")
    for part in (f"python -m pipeline configs/pipeline/{path.name}", "Hardware:", "Expected"):
        assert part in header
    assert load(PipelineConfig, path).dataset_dir.startswith("datasets/")


def test_the_smallest_sizes():
    smallest = ("shards.target_mib=0.01", "shards.chunk_mib=0.01", "shards.block_tokens=1024")
    assert config(*smallest).shards == TextShardsConfig(0.01, 0.01, 1024)


def test_a_new_shard_size_reads_nothing_again():
    old, new = (
        portion_fingerprints(one, portions(), PLACEMENT, "t")
        for one in (config(), config("shards.target_mib=1"))
    )
    assert old == new


@pytest.mark.parametrize("change", [{"source": "b"}, {"bytes": 10}, {"version": "2"}])
def test_a_changed_file_is_read_again(change):
    old, new = (
        portion_fingerprints(config(), listing, PLACEMENT, "t")
        for listing in (portions(), portions(**change))
    )
    assert old[0] != new[0]
    assert reading_fingerprint(config(), portions()) != reading_fingerprint(
        config(), portions(**change)
    )


def test_another_place_or_tokenizer_is_read_again():
    base = portion_fingerprints(config(), portions(), PLACEMENT, "t")
    moved = place(SplitConfig(), shuffle_seed=0, partition_bits=13)
    assert portion_fingerprints(config(), portions(), moved, "t") != base
    assert portion_fingerprints(config(), portions(), PLACEMENT, "u") != base
    assert portion_fingerprints(config(), portions(url="/moved/a"), PLACEMENT, "t") == base


def test_names_of_classes_are_known_by_their_content(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog")
    named = [f"corpus.class_names={path}", "corpus.class_member=cls"]
    images = load(PipelineConfig, None, ["dataset_dir=d", *WEBDATASET, *named])
    first = request_fingerprint(images, portions()), resources_fingerprint(images)
    path.write_text("dog\ncat")
    second = request_fingerprint(images, portions()), resources_fingerprint(images)
    assert first[0] != second[0] and first[1] != second[1]
    assert resources_fingerprint(load(PipelineConfig, None, ["dataset_dir=d", *WEBDATASET])) == ""


def test_a_tokenizer_is_known_by_its_content(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("1")
    one = config("tokenizer.kind=load", f"tokenizer.path={path}")
    first = request_fingerprint(one, portions())
    path.write_text("2")
    assert request_fingerprint(one, portions()) != first
