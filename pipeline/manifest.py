"""The manifest: the contract between preparation and training, of the standard library alone.

`DATASET/manifest.json` is written last; a dataset without it does not exist. It lists every shard
of every split with its size, sha256 and chunks. A chunk is a contiguous run of whole samples of
about 8 MiB: the unit of reading, of shuffling and of cutting sequences.
"""

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"


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
    """Kind of samples: text."""
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
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")
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
    return parse_manifest(text, where=str(path))


def parse_manifest(text: str, *, where: str) -> Manifest:
    """Parse and check the text of a manifest; `where` names it in errors.

    Raises:
        ValueError: damaged, of another format version, or the fingerprint does not fit the shards.
    """
    with _collection_paused():
        return _parse(text, where)


def _parse(text: str, where: str) -> Manifest:
    try:
        tree = json.loads(text)
        version = tree["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: damaged, no readable manifest ({error})") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{where}: format {version}, this version reads format {FORMAT_VERSION}")
    try:
        manifest = _from_tree(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: damaged, {type(error).__name__}: {error}") from None
    if manifest.fingerprint != tree["fingerprint"]:
        raise ValueError(f"{where}: its shards do not give its fingerprint {tree['fingerprint']}")
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
    return Manifest(
        kind=tree["kind"],
        splits={
            split: tuple(_shard(row) for row in rows) for split, rows in tree["splits"].items()
        },
        config=tree["config"],
        libraries=tree["libraries"],
        tokenizer=None if tokenizer is None else Tokenizer(**tokenizer),
        token_dtype=tree["token_dtype"],
    )


def _shard(row: dict[str, Any]) -> Shard:
    chunks = Chunks(**{name: tuple(column) for name, column in row["chunks"].items()})
    return Shard(**{**row, "chunks": chunks})


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
