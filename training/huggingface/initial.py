"""Weights of a Hugging Face folder for a model of ours, for `init_from`."""

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.huggingface.entries import to_ours, to_theirs
from training.huggingface.folder import Folder

DECISIVE = (
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "positions",
    "num_buckets",
    "max_distance",
    "norm",
    "activation",
    "bias",
    "tie_embeddings",
    "class_token",
    "qk_norm",
    "layer_scale",
)
"""Keys without which the same weights compute something else; others are a matter of choice."""
GENERAL = {"bias": True, "tie_embeddings": False}
"""What computes the same with weights of the other value: biases of 0, a head that was tied."""
ROWS_OF_VOCABULARY = ("embedding.weight", "head.weight")


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds."""

    weights: dict[str, Tensor]
    """In fp32, under our names."""
    unused: tuple[str, ...]
    """Names there that our model has nothing for."""
    section: str
    """The section `model` that fits, as YAML in one line."""
    differs: dict[str, str]
    """Keys of `model` that are otherwise here, and how."""


def read_weights(path: Path, own: Any) -> Found:
    """The weights of a folder for a model of the config `own`.

    Raises:
        ValueError: not complete, of a layout that is not read, or of another architecture.
    """
    folder = Folder(path)
    section, there = _read_section(folder)
    line = f"model: {json.dumps({'name': folder.layout.MODEL, **section})}"
    differs = compare(section, own)
    decisive = [f"model.{key} is {differs[key]}" for key in _decisive(differs, section, own)]
    if decisive:
        raise ValueError(f"{', '.join(decisive)}; the section that fits is {line}")
    entries = list(folder.layout.entries(there))
    expected = to_theirs(entries, _shapes(folder.layout.MODEL, there))
    missing = _check_shapes(folder, expected)
    weights = {
        name: weight.float()
        for name, weight in to_ours(entries, folder.read, without=missing).items()
    }
    rows = getattr(own, "vocab_size", 0)
    unused = tuple(name for name in folder.places if name not in expected)
    return Found(_fill_vocabulary(weights, rows), unused, line, differs)


def _read_section(folder: Folder) -> tuple[dict[str, Any], Any]:
    """The section `model` that a config.json means, and the config that it makes."""
    module = importlib.import_module(f"training.models.{folder.layout.MODEL}")
    try:
        section = folder.layout.read_config(folder.config, folder.read)
        return section, module.Config(**section)
    except KeyError as error:
        raise ValueError(f"config.json has no {error.args[0]}") from None
    except (TypeError, ArithmeticError) as error:  # a word where a number is expected
        raise ValueError(f"config.json makes no sense: {error}") from None


def _shapes(model: str, config: Any) -> dict[str, Tensor]:
    """Weights of the model without memory."""
    with torch.device("meta"):
        state: dict[str, Tensor] = (
            importlib.import_module(f"training.models.{model}").Model(config).state_dict()
        )
    return state


def _check_shapes(folder: Folder, expected: Mapping[str, Tensor]) -> list[str]:
    """Names that a file without a head may lack.

    Raises:
        ValueError: another one is missing, or has another shape than config.json says.
    """
    missing = [name for name in expected if name not in folder.places]
    lost = [name for name in missing if not name.startswith(folder.layout.MAY_LACK)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ValueError(f"its files lack {lost[0]}{more}; is the folder complete?")
    for name, weight in expected.items():
        wished = weight.shape
        found = wished if name in missing else folder.shape(name)
        if found != wished:
            raise ValueError(f"{name} is {list(found)}, but config.json means {list(wished)}")
    return missing


def compare(section: Mapping[str, Any], own: Any) -> dict[str, str]:
    """Keys of a section `model` that are otherwise in the config `own`, and how."""
    differs = {}
    for key, there in section.items():
        here = getattr(own, key, there)  # an encoder alone knows nothing of a decoder's keys
        close = isinstance(there, float) and math.isclose(there, here, rel_tol=1e-6)
        if here != there and not close:
            differs[key] = f"{there} there, {here} here"
    return differs


def _decisive(differs: Mapping[str, str], section: Mapping[str, Any], own: Any) -> list[str]:
    """Keys by which the model here cannot be that of there."""

    def is_general(key: str) -> bool:
        there, here = section[key], getattr(own, key)
        if key == "layer_scale":  # where it began does not matter
            return bool(there) == bool(here)
        return key in GENERAL and bool(here == GENERAL[key])

    return [key for key in differs if key in DECISIVE and not is_general(key)]


def _fill_vocabulary(weights: dict[str, Tensor], num_rows: int) -> dict[str, Tensor]:
    """Weights for a larger vocabulary: its last rows are the mean of the others.

    A row of small random numbers would be among the likeliest where all trained logits are far
    below 0, as GPT-2's are.
    """
    filled = dict(weights)
    for name in ROWS_OF_VOCABULARY:
        if name in weights and len(weights[name]) < num_rows:
            rows = weights[name]
            mean = rows.mean(dim=0).expand(num_rows - len(rows), -1)
            filled[name] = torch.cat((rows, mean))
    return filled
