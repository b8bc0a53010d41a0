"""Section `data`, and the errors of opening a split."""

import dataclasses

import fsspec
import numpy as np
import pytest

import configs
from training.data.config import TextDataConfig, describe_order, open_tokens
from training.data.shards import load_manifest


@pytest.fixture(scope="module")
def written(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, [[400, 300]])
    return folder


def open_split(path, split="train", **options):
    config = TextDataConfig(dataset_dir=str(path), **options)
    return open_tokens(config, load_manifest(config.dataset_dir), split=split)


def test_config_opens_a_split(written):
    config = configs.load(
        TextDataConfig,
        None,
        [f"dataset_dir={written}", "sequence_length=9", "corrupt_chunks=replace"],
    )
    dataset = open_tokens(config, load_manifest(config.dataset_dir), split="train")
    assert len(dataset) == (700 - 1) // 9
    assert dataset.read(np.arange(4)).tokens.shape == (4, 10)


def test_missing_split(written):
    with pytest.raises(ValueError, match="no split validation; it has train"):
        open_split(written, "validation")


def test_other_kinds_are_refused(written):
    manifest = dataclasses.replace(load_manifest(str(written)), kind="image")
    with pytest.raises(ValueError, match="samples of kind image, expected text"):
        open_tokens(TextDataConfig(dataset_dir=str(written)), manifest, split="train")


def test_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete dataset"):
        load_manifest(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_length", 0),
        ("window", 0),
        ("num_lanes", 513),
        ("num_batches_ahead", 0),
        ("num_loader_workers", 0),
        ("chunk_cache_mib", 0),
    ],
)
def test_fields_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* found {value}"):
        TextDataConfig(dataset_dir="d", **{field: value})


@pytest.mark.parametrize("field", ["sequence_length", "shuffle_seed", "num_lanes", "window"])
def test_what_changes_the_order_changes_its_description(written, field):
    config, manifest = TextDataConfig(dataset_dir=str(written)), load_manifest(str(written))
    other = dataclasses.replace(config, **{field: 7})
    found = {describe_order(each, manifest) for each in (config, other)}
    assert len(found) == 2
    assert all(manifest.fingerprint in each for each in found)
    elsewhere = dataclasses.replace(config, dataset_dir="s3://x", num_loader_workers=7)
    assert describe_order(elsewhere, manifest) == describe_order(config, manifest)


def test_a_cache_that_would_thrash_is_refused(tmp_path, write_dataset):
    write_dataset(tmp_path, [[200_000] * 8], samples_per_chunk=1)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/thrash-test", recursive=True)
    try:
        with pytest.raises(
            ValueError, match=r"128 lanes, .* about 8 chunks of .* use at least 4 MiB"
        ):
            open_split("memory://thrash-test", chunk_cache_mib=1)
        open_split("memory://thrash-test", chunk_cache_mib=4)
        open_split("memory://thrash-test", chunk_cache_mib=1, num_lanes=1, sequence_length=64)
    finally:
        memory.rm("/thrash-test", recursive=True)
