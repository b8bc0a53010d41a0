"""`--help` of every verb: each field of a schema with its type, default and literal."""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from configs.plugins import plugin_config, plugin_names


def describe(schema: type[Any], prefix: str = "") -> str:
    """Each field as `key: type = default` and what it is; sections and plugins in order.

    The fields that a variant of the schema has of its own follow under its name.
    """
    parts = [_describe(schema, dataclasses.fields(schema), prefix)]
    common = {(field.name, field.type) for field in dataclasses.fields(schema)}
    for name, variant in schema.variants().items() if hasattr(schema, "variants") else ():
        own = [one for one in dataclasses.fields(variant) if (one.name, one.type) not in common]
        parts.append(f"\nOf kind {name} alone:\n{_describe(variant, own, prefix)}")
    return "\n".join(parts)


def _describe(schema: type[Any], fields: Sequence[dataclasses.Field[Any]], prefix: str) -> str:
    docs = field_docs(schema)
    lines: list[str] = []
    for field in fields:
        key = f"{prefix}{field.name}"
        if "plugin" in field.metadata:
            lines.extend(_describe_plugins(field, key, docs))
        elif isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            lines += ["", f"{key}:  {docs[field.name]}", describe(field.type, f"{key}.")]
        else:
            left = f"  {key}: {_type_name(field.type)}{_default(field)}"
            lines += [
                left,
                textwrap.fill(
                    docs[field.name], 110, initial_indent=" " * 6, subsequent_indent=" " * 6
                ),
            ]
    return "\n".join(lines)


def field_docs(schema: type[Any]) -> dict[str, str]:
    """The literal under each field of a dataclass, its bases included.

    Raises:
        ValueError: a field has no literal under it.
    """
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_literals(base))
    missing = [field.name for field in dataclasses.fields(schema) if field.name not in docs]
    if missing:
        raise ValueError(f"{schema.__qualname__}: no literal under {', '.join(missing)}")
    return docs


def _literals(schema: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = inspect.cleandoc(str(following.value.value)).replace(
                "\n", " "
            )
    return docs


def _describe_plugins(field: dataclasses.Field[Any], key: str, docs: dict[str, str]) -> list[str]:
    package, selector = field.metadata["plugin"], field.metadata["selector"]
    names = plugin_names(package)
    optional = " = null" if field.default is None else ""
    lines = [
        "",
        f"{key}:  {docs[field.name]}",
        f"  {key}.{selector}: {' | '.join(names)}{optional}",
    ]
    for name in names:
        lines += [
            f"  with {key}.{selector}={name}:",
            textwrap.indent(describe(plugin_config(package, name), f"{key}."), "  "),
        ]
    return lines


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if isinstance(annotation, types.UnionType):
        return " | ".join(map(_type_name, get_args(annotation)))
    if get_origin(annotation) in (tuple, list):
        return f"list of {_type_name(get_args(annotation)[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: dataclasses.Field[Any]) -> str:
    if "only_with" in field.metadata:
        selector, value = field.metadata["only_with"]
        return f" = {field.metadata['default']} with {selector} '{value}'"
    if field.default is not dataclasses.MISSING:
        return f" = {'null' if field.default is None else field.default}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()}"
    return " (required)"
