"""The manifest: the contract between preparation and training, of the standard library alone.

`DATASET/manifest.json` is written last; a dataset without it does not exist. It lists every shard
of every split with its size, sha256 and chunks. A chunk is a contiguous run of whole samples of
about 8 MiB: the unit of reading, of shuffling and of cutting sequences.
"""

import gc
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MAX_VOCAB_SIZE = 2**32
"""Token ids fit into uint32."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one shard, as columns: one million of them load in a second."""

    first_sample: tuple[int, ...]
    """Index of the chunk's first sample in its shard."""
    start: tuple[int, ...]
    """Offset of its first byte in the tar, bytes."""
    stop: tuple[int, ...]
    """Offset behind its last byte in the tar, bytes."""
    samples: tuple[int, ...]
    """Samples in the chunk."""
    tokens: tuple[int, ...]
    """Tokens in the chunk; 0 for images."""
    crc32: tuple[int, ...]
    """zlib.crc32 of the tar's bytes from start to stop."""

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of a split."""

    name: str
    """File name in the dataset folder, as train-000000.tar."""
    bytes: int
    """Size of the tar, bytes."""
    samples: int
    """Samples in the tar."""
    tokens: int
    """Tokens in the tar; 0 for images."""
    sha256: str
    """Hex digest of the tar."""
    chunks: Chunks
    """Its chunks, in order, without a gap."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The tokenizer that the tokens were made with: what a reader of tokens must know of it."""

    file: str
    """File name in the dataset folder."""
    sha256: str
    """Hex digest of the file."""
    vocab_size: int
    """Number of token ids, special tokens included."""
    end_of_document: int
    """Id of the token behind every document."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a dataset holds, and from what it was made."""

    kind: str
    """Kind of samples: text or image."""
    splits: dict[str, tuple[Shard, ...]]
    """Shards of each split, `train` and, if it was asked for, `validation`."""
    config: dict[str, Any]
    """The part of the build's config that decides bytes."""
    libraries: dict[str, str]
    """Versions of the libraries that decide bytes."""
    tokenizer: Tokenizer | None = None
    """Of text datasets."""
    token_dtype: str | None = None
    """`uint16` or `uint32`, of text datasets."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order of class index, of image datasets that have any."""

    @property
    def fingerprint(self) -> str:
        """sha256 over the shards' names, sizes, sample counts and sha256, in order."""
        digest = hashlib.sha256()
        for split, shards in sorted(self.splits.items()):
            for shard in shards:
                row = f"{split} {shard.name} {shard.bytes} {shard.samples} {shard.sha256}\n"
                digest.update(row.encode())
        return digest.hexdigest()

    @property
    def config_hash(self) -> str:
        """sha256 of the config's canonical JSON."""
        return hash_config(self.config)


def hash_config(config: dict[str, Any]) -> str:
    """sha256 of a config as canonical JSON: sorted keys, no spaces."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(manifest: Manifest, dataset_dir: str | Path) -> None:
    """Write `manifest.json`, complete or not at all: temporary name, fsync, rename."""
    path = Path(dataset_dir) / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.tmp")  # fixed: the run after a kill takes it over
    with temporary.open("w", encoding="utf-8") as file:
        file.write(render_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def render_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`; equal manifests give equal bytes."""
    tokenizer = manifest.tokenizer
    tree = {
        "format": FORMAT_VERSION,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "config": manifest.config,
        "config_hash": manifest.config_hash,
        "libraries": manifest.libraries,
        "tokenizer": None if tokenizer is None else _row(tokenizer),
        "token_dtype": manifest.token_dtype,
        "splits": {
            split: [{**_row(shard), "chunks": _row(shard.chunks)} for shard in shards]
            for split, shards in sorted(manifest.splits.items())
        },
    }
    if manifest.classes:
        tree["classes"] = manifest.classes
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"), default=_row) + "\n"


def read_manifest(dataset_dir: str | Path) -> Manifest:
    """Read and check the manifest of a local dataset folder.

    Raises:
        FileNotFoundError: the folder holds no manifest, so no complete dataset.
        ValueError: the manifest is damaged, of another format version, or contradicts itself.
    """
    path = Path(dataset_dir) / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{dataset_dir}: no {FILE_NAME}, so no complete dataset; "
            "build it with `python -m pipeline CONFIG`"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged, no readable manifest ({error})") from None
    return parse_manifest(text, where=str(path))


def parse_manifest(text: str, *, where: str) -> Manifest:
    """Parse and check the text of a manifest; `where` names it in errors.

    Raises:
        ValueError: damaged, of another format version, or it contradicts itself.
    """
    with _collection_paused():
        return _parse(text, where)


def _parse(text: str, where: str) -> Manifest:
    try:
        tree = json.loads(text)
        version = tree["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: damaged, no readable manifest ({error})") from None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{where}: format {_shown(version)}, this version reads format {FORMAT_VERSION}"
        )
    try:
        manifest = _from_tree(tree)
        sums = {"fingerprint": manifest.fingerprint, "config_hash": manifest.config_hash}
        listed = {name: tree[name] for name in sums}
    except KeyError as error:
        raise ValueError(f"{where}: damaged, it lacks {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: damaged, {error}") from None
    if listed["fingerprint"] != sums["fingerprint"]:
        raise ValueError(
            f"{where}: damaged, its shards do not give its fingerprint "
            f"{_shown(listed['fingerprint'])}"
        )
    if listed["config_hash"] != sums["config_hash"]:
        raise ValueError(f"{where}: damaged, config_hash is not the hash of its config")
    _check(manifest, where)
    return manifest


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Without garbage collection, which walks the growing tree: 640,000 chunks in 0.5 not 0.7 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _from_tree(tree: dict[str, Any]) -> Manifest:
    tokenizer = tree["tokenizer"]
    libraries = _of_type(tree["libraries"], dict, "libraries")
    for library, version in libraries.items():
        _of_type(version, str, f"libraries.{library}")
    for split in _of_type(tree["splits"], dict, "splits"):
        _check_name(split)
    if tree["token_dtype"] not in (None, "uint16", "uint32"):
        raise ValueError(f"token_dtype is {_shown(tree['token_dtype'])}, must be uint16 or uint32")
    return Manifest(
        kind=_of_type(tree["kind"], str, "kind"),
        splits={
            split: tuple(_shard(row) for row in _of_type(rows, list, f"splits.{split}"))
            for split, rows in tree["splits"].items()
        },
        config=_of_type(tree["config"], dict, "config"),
        libraries=libraries,
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        token_dtype=tree["token_dtype"],
        classes=tuple(_classes(tree.get("classes", []))),
    )


def _classes(names: Any) -> list[str]:
    if any(type(name) is not str for name in _of_type(names, list, "classes")):
        raise ValueError("classes are not all texts")
    if len(set(names)) != len(names):
        raise ValueError("classes have a name twice")
    return list(names)


def _tokenizer(row: Any) -> Tokenizer:
    tokenizer = Tokenizer(**_fields(Tokenizer, row, "tokenizer"))
    _check_name(tokenizer.file)
    if not 0 < tokenizer.vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {tokenizer.vocab_size}, must be 1 to {MAX_VOCAB_SIZE}")
    return tokenizer


def _shard(row: Any) -> Shard:
    values = _fields(Shard, row, "a shard")
    _check_name(values["name"])
    columns = _fields(Chunks, values["chunks"], f"chunks of {values['name']}")
    for name, column in columns.items():
        if column and (set(map(type, column)) != {int} or min(column) < 0 or max(column) >= 2**63):
            raise ValueError(f"{name} of the chunks of {values['name']} are not all whole numbers")
    chunks = Chunks(**{name: tuple(column) for name, column in columns.items()})
    return Shard(**{**values, "chunks": chunks})


def _fields(of: type, row: Any, what: str) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them, each of its type; numbers are not negative."""
    expected: dict[str, Any] = {one.name: one.type for one in fields(of)}
    json_types: dict[Any, type] = {Chunks: dict, int: int, str: str}  # columns are lists
    if set(_of_type(row, dict, what)) != set(expected):
        raise ValueError(
            f"{what} has the fields {_shown(sorted(row))}, must have {sorted(expected)}"
        )
    for name, value in row.items():
        json_type = json_types.get(expected[name], list)
        _of_type(value, json_type, f"{name} of {what}")
        if json_type is int and not 0 <= value < 2**63:
            raise ValueError(f"{name} of {what} is {value}, must be 0 to {2**63 - 1}")
    return dict(row)


def _of_type(value: Any, expected: type, what: str) -> Any:
    if type(value) is not expected:  # not isinstance: true is no number
        names = {dict: "an object", list: "a list", int: "a whole number", str: "a text"}
        raise ValueError(f"{_shown(what)} is {_shown(value)}, must be {names[expected]}")
    return value


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_shown(name)} is no plain file name")


def _shown(value: Any) -> str:
    """A value as it may stand in a line: short, and printable in every encoding."""
    return ascii(value if not isinstance(value, str) else value[:70]).strip("'")[:90]


def _check(manifest: Manifest, where: str) -> None:
    names = [shard.name for shards in manifest.splits.values() for shard in shards]
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: a shard is listed twice")
    for shards in manifest.splits.values():
        for shard in shards:
            chunks = shard.chunks
            columns = (
                chunks.stop,
                chunks.first_sample,
                chunks.samples,
                chunks.tokens,
                chunks.crc32,
            )
            if any(len(column) != len(chunks) for column in columns) or not len(chunks):
                raise ValueError(f"{where}: the chunk columns of {shard.name} differ in length")
            if sum(chunks.samples) != shard.samples or sum(chunks.tokens) != shard.tokens:
                raise ValueError(f"{where}: the chunks of {shard.name} do not add up to the shard")
            if chunks.start[0] != 0 or chunks.start[1:] != chunks.stop[:-1]:
                raise ValueError(f"{where}: the chunks of {shard.name} leave a gap")


def _row(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
