"""Layouts: a module for each `model_type` of Hugging Face configs, found by that name.

Each is a table of weights, and a translation of configs in both directions.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

from configs.plugins import plugin_names
from training.huggingface.entries import Entry, Read

Json = dict[str, Any]


class Layout(Protocol):
    """A module of this package; `config` is the `Config` of the model that it is a layout of."""

    MODEL: str
    """Module of training/models/."""
    ARCHITECTURE: str
    """The class that loads it there."""
    PREFIX: str
    """Of the weights in front of the head; files of a model without its head lack it."""
    MAY_LACK: tuple[str, ...]
    """Beginnings of names that such files lack as well."""
    OTHER_NAMES: Mapping[str, str]
    """Beginnings of names that some version writes instead, and those that are meant."""

    def find_obstacles(self, config: Any) -> list[str]:
        """What of a config has no counterpart there: keys, values, and what would have one."""
        ...

    def entries(self, config: Any) -> Iterator[Entry]:
        """All weights, in the order of files."""
        ...

    def write_config(self, config: Any) -> Json:
        """The part of config.json that tells the model."""
        ...

    def read_config(self, tree: Mapping[str, Any], read: Read) -> Json:
        """The keys of the section `model` that a config.json means.

        Raises:
            ValueError: it means something that no model of ours is.
        """
        ...


def layout_named(model_type: str) -> Layout:
    """The layout of a `model_type`.

    Raises:
        ValueError: there is none.
    """
    names = plugin_names(__name__)
    if model_type not in names:
        raise ValueError(f"model_type is {model_type}; layouts that are read: {', '.join(names)}")
    return cast("Layout", importlib.import_module(f"{__name__}.{model_type}"))


def find_layout(model_name: str, config: Any) -> Layout:
    """The layout that can tell a model of ours; of several that which adds the fewest weights.

    Raises:
        ValueError: none can, and what stands in the way of each.
    """
    layouts = [layout_named(name) for name in plugin_names(__name__)]
    obstacles = {
        layout: layout.find_obstacles(config) for layout in layouts if model_name == layout.MODEL
    }
    fitting = [layout for layout, found in obstacles.items() if not found]
    if fitting:
        return min(fitting, key=lambda one: sum(not entry.ours for entry in one.entries(config)))
    reasons = [f"as {one.ARCHITECTURE}: {', '.join(found)}" for one, found in obstacles.items()]
    raise ValueError(
        f"no architecture of Hugging Face transformers computes what this {model_name} does: "
        + ("; ".join(reasons) or "no layout is known")
    )


def require(config: Any, **needed: Any) -> list[str]:
    """Keys of a config that are not as needed: `model.positions=rotary (needs learned)`."""
    found = {name: getattr(config, name) for name in needed}
    return [
        f"model.{name}={found[name]} (needs {value})"
        for name, value in needed.items()
        if found[name] != value
    ]


def expect(tree: Mapping[str, Any], **needed: Any) -> None:
    """Refuse a config.json that says something else than needed; what it leaves out is needed.

    Raises:
        ValueError: with the key, what was found, and what is read.
    """
    for name, value in needed.items():
        if tree.get(name, value) != value:
            raise ValueError(f"{name} is {tree[name]}; only {value} is read")


def lookup(tree: Mapping[str, Any], name: str, table: Mapping[str, str]) -> str:
    """Our word for theirs.

    Raises:
        ValueError: there is none.
    """
    if tree[name] not in table:
        raise ValueError(f"{name} is {tree[name]}; only {', '.join(table)} are read")
    return table[tree[name]]
