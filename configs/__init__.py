"""Configuration: YAML and `key=value` overrides become frozen dataclasses.

The one loader of Millrace, and the only importer of OmegaConf. A schema is a frozen dataclass whose
every field has a literal under it; sections declared with `plugin(...)` are typed by the `Config`
of the module that they name. Every mistake is one `ConfigError`: full key, what was found, what is
allowed.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from configs.describe import describe
from configs.plugins import Plugin, nearest, plugin, plugin_config

__all__ = ["ConfigError", "Plugin", "describe", "load", "plugin", "read_tree", "to_dict", "to_yaml"]

Schema = TypeVar("Schema")

# `${configs:corpora/x.txt}` is a file that comes with Millrace, wherever it is installed.
OmegaConf.register_resolver("configs", lambda path: str(Path(__file__).parent / path))


class ConfigError(ValueError):
    """A user's mistake in a config, told in one line."""


def load(schema: type[Schema], path: str | Path | None, overrides: Sequence[str] = ()) -> Schema:
    """Merge defaults, the YAML file at `path` and `key=value` overrides into a `schema`.

    A schema with a classmethod `variant` chooses one of its subclasses by the merged tree.

    Raises:
        ConfigError: unknown key, wrong type, missing value, unknown plugin, or a failed check.
    """
    tree = read_tree(path, overrides)
    texts = dict(override.split("=", 1) for override in overrides)
    choose = getattr(schema, "variant", None)
    return cast("Schema", _build(choose(tree) if choose else schema, tree, "", texts))


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file at `path` with `key=value` overrides: what is written there, no defaults.

    Raises:
        ConfigError: no such file, no YAML, or an override that is none.
    """
    try:
        merged = OmegaConf.merge(_read_yaml(path), _read_overrides(overrides))
        return cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error, "")) from None


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain dictionaries and lists; `load` reads it back as an equal one."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Plugin):
            result[field.name] = {value.selector: value.name, **to_dict(value.config)}
        elif dataclasses.is_dataclass(value):
            result[field.name] = to_dict(value)
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def to_yaml(config: Any) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _read_yaml(path: str | Path | None) -> DictConfig:
    if path is None:
        return OmegaConf.create({})
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a YAML file in it") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_squeeze(str(error))}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found a list")
    return loaded


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", override):
            raise ConfigError(f"'{override}' is no override; write key=value, as in seed=1")
        if not override.isprintable() and re.search("[\ud800-\udfff]", override):
            raise ConfigError(f"override {os.fsencode(override)!r}: not UTF-8")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"overrides {' '.join(overrides)}: {_squeeze(str(error))}") from None


def _build(schema: type[Any], tree: Any, prefix: str, texts: dict[str, str]) -> Any:
    """Build `schema` from a tree: sections by their own schema, the leaves by OmegaConf.

    `texts` are the overrides as they were typed, by full key.
    """
    tree = _section(tree, prefix)
    sections: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        if "plugin" in field.metadata:
            sections[field.name] = _build_plugin(field, tree.pop(field.name, None), key, texts)
        elif isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            sections[field.name] = _build(field.type, tree.pop(field.name, None), f"{key}.", texts)
    try:
        tree = {
            name: _as_typed(schema, name, tree[name], texts.get(prefix + name)) for name in tree
        }
        return schema(**sections, **_leaves(schema, tree, prefix, sections))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error, prefix)) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(_with_key(schema, _squeeze(str(error)), prefix)) from None


def _leaves(
    schema: type[Any], tree: dict[str, Any], prefix: str, sections: dict[str, Any]
) -> dict[str, Any]:
    """The fields that are no sections, converted to the types of the schema by OmegaConf."""
    base = OmegaConf.structured(schema)
    OmegaConf.set_readonly(
        base, None
    )  # a frozen schema makes a read-only config, which refuses a merge
    merged = OmegaConf.merge(base, OmegaConf.create(tree))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if field.name in sections:
            continue
        if OmegaConf.is_missing(merged, field.name):
            key = f"{prefix}{field.name}"
            raise ConfigError(f"{key}: missing; give it a value in the YAML or as {key}=VALUE")
        value = getattr(merged, field.name)
        values[field.name] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
    return values


def _build_plugin(
    field: dataclasses.Field[Any], section: Any, key: str, texts: dict[str, str]
) -> Plugin | None:
    package, selector = field.metadata["plugin"], field.metadata["selector"]
    if section is None and field.default is None:
        return None
    section = _section(section, f"{key}.")
    name = section.pop(selector, None)
    if name is None:
        raise ConfigError(
            f"{key}.{selector}: missing; name a module of {package.replace('.', '/')}/"
        )
    try:
        schema = plugin_config(package, str(name))
    except ValueError as error:
        raise ConfigError(f"{key}.{selector}: {error}") from None
    config = _build(schema, section, f"{key}.", texts)
    return Plugin(name=str(name), package=package, selector=selector, config=config)


def _as_typed(schema: type[Any], name: str, value: Any, text: str | None) -> Any:
    """A text field as it was typed, `1e5` and not 100000.0; one text for a list of texts."""
    types = {field.name: field.type for field in dataclasses.fields(schema)}
    if types.get(name) is str and text and not re.search(r"\$\{|^[\"']", text):
        return text
    if types.get(name) == tuple[str, ...] and isinstance(value, str):
        return [value]
    return value


def _with_key(schema: type[Any], message: str, prefix: str) -> str:
    """A failed check with the full key: the section, and the field where the message begins so."""
    word = re.split(r"\W", message, maxsplit=1)[0]
    if word in {field.name for field in dataclasses.fields(schema)}:
        return prefix + message
    return f"{prefix.rstrip('.')}: {message}" if prefix else message


def _section(section: Any, prefix: str) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: is a section of keys, found '{section}'")
    return dict(section)


def _one_line(error: OmegaConfBaseException, prefix: str) -> str:
    """OmegaConf's message as one line that starts with the full key."""
    key = f"{prefix}{error.full_key or ''}".rstrip(".")
    if isinstance(error, ConfigKeyError) and error.object_type is not None:
        names = [field.name for field in dataclasses.fields(error.object_type)]
        close = nearest(str(error.key), names)
        return f"{key}: unknown key{close}; allowed here: {', '.join(names)}"
    message = _squeeze(str(error).split("\n    full_key")[0])
    return f"{key}: {message}" if key else message


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
