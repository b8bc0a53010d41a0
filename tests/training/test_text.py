"""Prompts and samples with a dataset's own tokenizer."""

import shutil

import pytest
import torch

from training.models import transformer
from training.text import Drawing, complete, load_codec

CONTROL = "<|endoftext|>"


@pytest.fixture(scope="module")
def codec(dataset_dir):
    return load_codec(dataset_dir)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return transformer.Model(
        transformer.Config(
            vocab_size=32, d_model=16, num_layers=2, num_heads=2, max_positions=8, dropout=0.5
        )
    )


def test_there_and_back(codec):
    tokens = codec.encode("the mill turns")
    assert len(tokens) == 14
    assert codec.decode(tokens) == "the mill turns"


def test_an_empty_prompt_starts_a_document(codec):
    assert codec.encode("") == [codec.end_of_document]
    assert codec.decode([codec.end_of_document]) == ""


def test_ends_of_documents_are_blank_lines(codec):
    end, the, mill = codec.end_of_document, codec.encode("the"), codec.encode("mill")
    assert codec.decode([end, *the, end, end, *mill, end]) == "the\n\nmill"


def test_control_tokens_in_a_prompt_stay_text(tmp_path):
    """With a tokenizer that has all characters of the control token."""
    from pipeline.manifest import Manifest, write_manifest
    from pipeline.tar import Sample, write_shard
    from pipeline.tokenizer import characters_tokenizer, describe_tokenizer, write_tokenizer

    tokenizer = characters_tokenizer(CONTROL + "abc", end_of_document=CONTROL)
    write_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    shard = write_shard(tmp_path / "train-000000.tar", [Sample("train-0", {"json": b"{}"})])
    described = describe_tokenizer(tokenizer, end_of_document=CONTROL)
    write_manifest(
        Manifest("text", {"train": (shard,)}, {}, {}, tokenizer=described, token_dtype="uint16"),
        tmp_path,
    )
    codec = load_codec(tmp_path)
    tokens = codec.encode(f"a{CONTROL}b")
    assert len(tokens) == len(CONTROL) + 2
    assert codec.end_of_document not in tokens
    assert codec.decode(tokens) == f"a{CONTROL}b"


def test_another_tokenizer_than_the_manifest_names(dataset_dir, tmp_path):
    folder = shutil.copytree(dataset_dir, tmp_path / "dataset")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: its sha256 is not the manifest's [0-9a-f]+"
    ):
        load_codec(folder)


def test_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="so no complete dataset"):
        load_codec(tmp_path)


def test_a_completion_keeps_the_prompt_and_follows_the_seed(model, codec):
    def draw(seed, **settings):
        drawing = Drawing(num_tokens=20, seed=seed, **settings)
        return complete(model, codec, "the mill", context=8, drawing=drawing)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1, temperature=0.0) == draw(2, temperature=0.0) == draw(3, top_k=1)
    assert all(draw(seed).startswith("the mill") for seed in range(5))
    assert complete(model, codec, "the", context=8, drawing=Drawing(num_tokens=0)) == "the"


def test_the_mode_of_the_model_is_kept(model, codec):
    for training in (True, False):
        model.train(training)
        complete(model, codec, "", context=8, drawing=Drawing(num_tokens=2))
        assert model.training is training
