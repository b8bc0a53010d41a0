"""Plugin sections: a module is a plugin, found by its name in a package.

`model: {name: transformer, ...}` is `training/models/transformer.py`, whose `Config` types the
rest of the section.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from dataclasses import MISSING, dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Plugin:
    """A resolved plugin section: the module's name and its own `Config`."""

    name: str
    """Module name inside the package."""
    package: str
    """Dotted package that holds the plugins."""
    selector: str
    """Key that names the module in YAML: `name` or `format`."""
    config: Any
    """Instance of the module's `Config`."""

    @property
    def module(self) -> ModuleType:
        """The plugin's module."""
        return importlib.import_module(f"{self.package}.{self.name}")


def plugin(package: str, *, selector: str = "name", optional: bool = False) -> Any:
    """Declare a field as a plugin section of `package`; an optional one may be absent or null."""
    metadata = {"plugin": package, "selector": selector}
    return field(default=None if optional else MISSING, metadata=metadata)


def plugin_names(package: str) -> list[str]:
    """The plugins of a package: its public modules, sorted."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"'{package}' is not a package")
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def plugin_config(package: str, name: str) -> type[Any]:
    """The `Config` class of a plugin.

    Raises:
        ValueError: no plugin has this name; the message lists those that exist and the nearest one.
    """
    names = plugin_names(package)
    if name not in names:
        raise ValueError(
            f"unknown name '{name}'{nearest(name, names)}; there are: {', '.join(names)}"
        )
    config: type[Any] = importlib.import_module(f"{package}.{name}").Config
    return config


def nearest(word: str, words: list[str]) -> str:
    """A suggestion for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
