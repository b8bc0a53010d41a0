"""What a Hugging Face folder tells of the images that its model learned from."""

import json
import re
from pathlib import Path
from typing import Any

from training.huggingface.folder import CONFIG

PREPROCESSOR = "preprocessor_config.json"
_MADE_UP = re.compile(r"LABEL_\d+|class \d+")
"""Of transformers and of our export, where nobody has named a class."""


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers; none where they are made up."""
    labels = _read(path / CONFIG).get("id2label")
    if not isinstance(labels, dict):
        return ()
    names = [str(labels.get(str(number), "")) for number in range(len(labels))]
    while names and _MADE_UP.fullmatch(names[-1]):
        names.pop()
    return tuple(names)


def read_normalisation(path: Path) -> dict[str, list[float]]:
    """`mean` and `std` of the pixels, as far as they are told."""
    tree = _read(path / PREPROCESSOR)
    found = {name: tree.get(f"image_{name}") for name in ("mean", "std")}
    return {name: values for name, values in found.items() if isinstance(values, list)}


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or none that is understood: what it says is a help."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
