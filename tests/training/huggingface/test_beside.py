"""Tokenizer files and image preparation, as transformers' Auto classes take them."""

import io
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import AutoImageProcessor, AutoTokenizer

from pipeline.encoder import PROBES
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer, train_tokenizer
from training.augment.config import Config
from training.augment.on_device import normalise
from training.augment.recipe import render
from training.huggingface.beside import (
    as_json,
    class_names,
    generation_config,
    preprocessor_config,
    tokenizer_files,
)

END = "<|endoftext|>"
TEXTS = [*PROBES, "The mill turns, and the water runs; it is n't late . ", "ab" * 30]


@pytest.fixture(scope="module")
def byte_pairs():
    return train_tokenizer(TEXTS * 20, vocab_size=300, end_of_document=END)


@pytest.fixture
def load(tmp_path):
    def from_files(content, *, model_type):
        described = describe_tokenizer(content, end_of_document=END)
        files = tokenizer_files(
            content.encode(), end_of_document=described.end_of_document, context_tokens=64
        )
        files["config.json"] = as_json({"model_type": model_type})
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        return AutoTokenizer.from_pretrained(tmp_path), files["tokenizer.json"]

    return from_files


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_byte_pairs(load, byte_pairs, model_type):
    theirs, written = load(byte_pairs, model_type=model_type)
    ours = Tokenizer.from_str(byte_pairs)
    assert written == byte_pairs.encode()
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text).input_ids == ids, text
        assert theirs.decode(ids) == text
    assert theirs.bos_token == theirs.eos_token == END
    assert theirs.unk_token is None
    assert set(theirs("the mill")) == {"input_ids", "attention_mask"}
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_characters(load, model_type):
    text = "the mill's water , turns!\n"
    theirs, _ = load(characters_tokenizer(text, end_of_document=END), model_type=model_type)
    ids = theirs(text).input_ids
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert theirs.decode(ids) == text
    assert theirs.unk_token == END


def test_what_training_never_saw_is_not_added(load, byte_pairs):
    """As a given tokenizer.json may: a token in front, cut and padded."""
    ours = Tokenizer.from_str(byte_pairs)
    end = ours.token_to_id(END)
    ours.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    ours.enable_truncation(4)
    ours.enable_padding(length=9)
    theirs, _ = load(ours.to_str(), model_type="llama")
    plain = Tokenizer.from_str(byte_pairs).encode("the water runs", add_special_tokens=False).ids
    assert theirs("the water runs").input_ids == plain
    assert len(plain) > 4


def test_offsets_of_bytes_stay(byte_pairs):
    ours = Tokenizer.from_str(byte_pairs)
    ours.post_processor = ByteLevel(trim_offsets=False)
    content = ours.to_str().encode()
    end = ours.token_to_id(END)
    files = tokenizer_files(content, end_of_document=end, context_tokens=64)
    assert files["tokenizer.json"] == content


def test_rows_without_a_token_are_not_drawn():
    ends = {"bos_token_id": 7, "eos_token_id": 7, "pad_token_id": 7}
    assert generation_config(end_of_document=7, num_tokens=8, vocab_size=8) == ends
    padded = generation_config(end_of_document=7, num_tokens=8, vocab_size=11)
    assert padded == ends | {"suppress_tokens": [8, 9, 10]}


def test_classes():
    assert class_names(["dark", "bright"], 3) == {
        "id2label": {"0": "dark", "1": "bright", "2": "class 2"},
        "label2id": {"dark": 0, "bright": 1, "class 2": 2},
    }


@pytest.mark.parametrize(
    ("width", "height", "mode", "crop_ratio"),
    [
        (20, 20, "RGB", 1.0),
        (20, 20, "RGB", 0.8),  # their 10 pixels, cut to 8
        (8, 8, "RGB", 1.0),  # nothing to resize
        (5, 5, "L", 1.0),
        (64, 32, "RGB", 1.0),  # cut at whole pixels; else theirs shifts by a half at most
        (40, 80, "RGB", 0.8),
    ],
)
def test_images_are_prepared_as_in_validation(tmp_path, width, height, mode, crop_ratio):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    colours = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image, content = PIL.Image.fromarray(colours), io.BytesIO()
    image.save(content, format="PNG")
    config = Config(crop_ratio=crop_ratio, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    pixels = torch.from_numpy(np.array(render(content.getvalue(), config.plain_recipe(8), 0)))
    expected = normalise(pixels[None], mean=config.mean, std=config.std)
    tree = preprocessor_config(
        image_size=8, crop_ratio=crop_ratio, mean=config.mean, std=config.std
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    found = processor(image, return_tensors="pt").pixel_values
    # Both round to 8 bits, each by itself, and weigh the pixels of borders otherwise.
    level = 2e-6 + (1 / 255 / min(config.std) if (width, height) != (8, 8) else 0)
    inside = slice(2, -2)
    torch.testing.assert_close(
        found[..., inside, inside], expected[..., inside, inside], rtol=0, atol=level
    )
    assert float((found - expected).abs().mean()) < level / 2
