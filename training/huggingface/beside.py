"""What lies beside the weights: the tokenizer's files, or how images are prepared."""

import json
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
Files = dict[str, bytes]
"""Contents by name."""

BICUBIC = 3
"""Pillow's number of it."""


def tokenizer_files(content: bytes, *, end_of_document: int, context_tokens: int) -> Files:
    """A dataset's tokenizer.json for transformers, which gives the tokens of training.

    What would be added in front or behind, cut or padded never was in training, and goes.
    """
    tree = json.loads(content)
    plain = _plain(tree)
    (token,) = [one["content"] for one in tree["added_tokens"] if one["id"] == end_of_document]
    described: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token,
        "eos_token": token,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
        # Version 4 gives token types too, which GPT-2 would add to the embedding as tokens.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tree["model"].get("unk_token") is not None:
        described["unk_token"] = tree["model"]["unk_token"]
    return {
        "tokenizer.json": content if plain == tree else as_json(plain),
        "tokenizer_config.json": as_json(described),
    }


def generation_config(*, end_of_document: int, num_tokens: int, vocab_size: int) -> Json:
    """How text begins and ends; rows of the vocabulary behind the tokenizer's are never drawn."""
    tree: Json = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_document)
    if vocab_size > num_tokens:
        tree["suppress_tokens"] = list(range(num_tokens, vocab_size))
    return tree


def preprocessor_config(
    *, image_size: int, crop_ratio: float, mean: Sequence[float], std: Sequence[float]
) -> Json:
    """What validation does: the central square of a share of the shorter side, bicubic.

    CLIP's processor is the one that crops, and versions 4 and 5 of transformers have it.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(image_size / crop_ratio)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def class_names(names: Sequence[str], num_classes: int) -> Json:
    """Classes of a config.json; those that the dataset does not name are called by their number."""
    labels = [*names, *(f"class {number}" for number in range(len(names), num_classes))]
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def as_json(tree: Json) -> bytes:
    """The content of a file."""
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _plain(tree: Json) -> Json:
    """A tokenizer that adds, cuts and pads nothing; offsets of bytes may stay."""
    keeps = (tree.get("post_processor") or {}).get("type") == "ByteLevel"
    post_processor = tree.get("post_processor") if keeps else None
    return tree | {"truncation": None, "padding": None, "post_processor": post_processor}
