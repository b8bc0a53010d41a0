"""`python -m pipeline.upload DATASET URL`: brings a finished dataset to an object store.

A store has no rename. So everything else goes first and the manifest last, and whoever finds a
manifest finds a whole dataset. An upload that was killed goes on with the same command: a file
that lies there with its size is not sent again, since the first thing sent, `upload.json`, says of
which dataset it is.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from configs import command
from configs.redact import redact
from pipeline.index import ENERGON_FOLDER
from pipeline.manifest import FILE_NAME, read_manifest
from pipeline.store import MARK, START_PAUSES, Store


def main(argv: Sequence[str]) -> None:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.upload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="folder with a manifest.json")
    parser.add_argument("url", metavar="URL", help="where to, as s3://BUCKET/PREFIX")
    arguments = parser.parse_args(argv)
    command.run(lambda: upload(arguments.dataset, arguments.url, console=Console(stderr=True)))


def upload(dataset_dir: Path, url: str, *, console: Console | None = None) -> None:
    """Send a dataset; nothing happens where it lies already.

    Raises:
        FileNotFoundError: the folder holds no dataset, or the bucket does not exist.
        ValueError: the dataset lacks a shard, other files lie at the URL, or it can be no URL.
        StoreError: the store refused, or failed for too long.
    """
    _check_shards(dataset_dir)
    manifest = (dataset_dir / FILE_NAME).read_bytes()
    mark = json.dumps({"manifest_sha256": hashlib.sha256(manifest).hexdigest()}).encode()
    store = Store.open(url)
    sizes = store.sizes(START_PAUSES)
    if _is_finished(store, sizes, manifest):
        print(f"{redact(url)}: holds this dataset already")
        return
    if _names_other(store, sizes, mark):
        raise ValueError(
            f"{redact(url)}: holds {min(sizes)} and no upload of this dataset; choose another URL, "
            "or delete what is there"
        )
    store.send_bytes(MARK, mark)
    files = {path.relative_to(dataset_dir).as_posix(): path for path in _files(dataset_dir)}
    missing = {name: at for name, at in files.items() if sizes.get(name) != at.stat().st_size}
    store.send_files(missing, console)
    store.send_bytes(FILE_NAME, manifest)
    store.remove([MARK])
    num_bytes = sum(path.stat().st_size for path in files.values())
    print(
        f"{redact(url)}: {len(files) + 1} files of {num_bytes + len(manifest):,} bytes, "
        f"{len(files) - len(missing)} were there already"
    )


def _check_shards(dataset_dir: Path) -> None:
    """Every shard is there with its size; `pipeline.verify` reads their bytes."""
    for shards in read_manifest(dataset_dir).splits.values():
        for shard in shards:
            path = dataset_dir / shard.name
            found = path.stat().st_size if path.is_file() else 0
            if found != shard.bytes:
                raise ValueError(
                    f"{path}: has {found:,} bytes, {shard.bytes:,} by the manifest; see python -m "
                    f"pipeline.verify {dataset_dir}"
                )


def _files(dataset_dir: Path) -> Iterator[Path]:
    """Everything but the manifest; what begins with a dot is of a build, or Energon's folder."""
    for path in sorted(dataset_dir.rglob("*")):
        inside = path.relative_to(dataset_dir)
        is_hidden = inside.parts[0].startswith(".") and inside.parts[0] != ENERGON_FOLDER
        if path.is_file() and not is_hidden and inside.as_posix() != FILE_NAME:
            yield path


def _is_finished(store: Store, sizes: dict[str, int], manifest: bytes) -> bool:
    return sizes.get(FILE_NAME) == len(manifest) and store.read(FILE_NAME) == manifest


def _names_other(store: Store, sizes: dict[str, int], mark: bytes) -> bool:
    """Whether something lies there that no upload of this dataset sent."""
    if not sizes:
        return False
    return MARK not in sizes or FILE_NAME in sizes or store.read(MARK) != mark


if __name__ == "__main__":
    main(sys.argv[1:])
