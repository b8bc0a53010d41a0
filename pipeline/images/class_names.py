"""The names of classes that a corpus knows by number alone."""

import json
from functools import lru_cache

from pipeline.urls import read_url


@lru_cache(maxsize=4)
def read_class_names(path: str) -> tuple[str, ...]:
    """The names in the order of their numbers: a line each, or the `classes` of a manifest.json.

    Raises:
        ValueError: there are none, or one is empty or there twice.
        OSError: the file cannot be read.
    """
    content = read_url(path)
    try:
        text = content.decode("utf-8-sig")
        names = _of_json(text) if path.lower().endswith(".json") else _of_lines(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not names:
        raise ValueError(f"{path}: names no classes")
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: a name of a class is empty, or there twice")
    return names


def _of_json(text: str) -> tuple[str, ...]:
    """`{"classes": ["cat", "dog"]}` or the list alone."""
    tree = json.loads(text)
    names = tree.get("classes") if isinstance(tree, dict) else tree
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError("holds no list of names, nor an object with such a list as `classes`")
    return tuple(names)


def _of_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().split("\n")) if text.strip() else ()
