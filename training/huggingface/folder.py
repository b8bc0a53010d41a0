"""A folder of Hugging Face's, read: config.json and safetensors, one file or several with an index.

Nothing in it is executed: pickle files are refused. Weights are read one by one, when asked for.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.huggingface.layouts import Layout, layout_named

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


def is_folder(path: Path) -> bool:
    """Whether a path looks like such a folder."""
    return (path / CONFIG).is_file()


class Folder:
    """Config and weights of a folder, the weights under the names of the whole model.

    Raises:
        ValueError: no safetensors, a damaged file, or a model of a layout that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = _read_json(path / CONFIG)
        self.layout: Layout = layout_named(str(self.config.get("model_type")))
        if "quantization_config" in self.config:
            raise ValueError("its weights are quantized; only fp32, bf16 and fp16 are read")
        self.files = _open_files(path)

    @cached_property
    def places(self) -> Mapping[str, tuple[Any, str]]:
        """File and name in it of each weight, by the name in a whole model."""
        found = {
            self._meant(name): (file, name)
            for file in self.files
            for name in file.keys()  # noqa: SIM118  (it is no mapping)
        }
        prefix = self.layout.PREFIX
        if any(name.startswith(prefix) for name in found):
            return found
        return {prefix + name: place for name, place in found.items()}

    def _meant(self, name: str) -> str:
        for other, meant in self.layout.OTHER_NAMES.items():
            if name.startswith(other):
                return meant + name.removeprefix(other)
        return name

    def shape(self, name: str) -> torch.Size:
        """Of a weight, without reading it."""
        file, inside = self.places[name]
        return torch.Size(file.get_slice(inside).get_shape())

    def read(self, name: str) -> Tensor:
        """A weight as it is stored."""
        if name not in self.places:
            raise ValueError(f"its files lack {name}; is the folder complete?")
        file, inside = self.places[name]
        weight: Tensor = file.get_tensor(inside)
        if weight.dtype not in DTYPES:
            raise ValueError(f"{name} is of {weight.dtype}; only fp32, bf16 and fp16 are read")
        return weight


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path.name} is no JSON object")  # noqa: TRY004  (a user's mistake)
    return tree


def _open_files(path: Path) -> list[Any]:
    names = [WEIGHTS]
    if (path / INDEX).is_file():
        weight_map = _read_json(path / INDEX).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    elif not (path / WEIGHTS).is_file():
        raise ValueError(_without_safetensors(path))
    if not names or any(Path(name).name != name for name in names):
        raise ValueError(f"{INDEX} has no weight_map to files in this folder")
    return [_open(path / name) for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path.name}, which {INDEX} names, is missing") from None
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors: {error}") from None


def _without_safetensors(path: Path) -> str:
    pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
    if not pickles:
        return f"it has neither {WEIGHTS} nor {INDEX}"
    return (
        f"it holds {pickles[0]}, but no {WEIGHTS}; files that can run code are not read: convert "
        "it where you trust it, by transformers' from_pretrained and save_pretrained"
    )
