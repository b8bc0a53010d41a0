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
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs import command
from configs.redact import redact
from pipeline.manifest import FILE_NAME, read_manifest
from pipeline.transfer import bytes_progress
from pipeline.urls import StoreError, asking, is_final, locate

MARK = "upload.json"
"""Object beside an unfinished upload: the sha256 of its manifest."""
NUM_TRANSFERS = 8
"""Files under way at once."""
PAUSES = (1, 2, 4, 8)
"""Seconds behind each attempt that failed, on top of what the store's package tries itself."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder behind a URL."""

    url: str
    fs: Any
    path: str

    def at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


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
    there = Destination(url, *locate(url))
    sizes = _persist(there, lambda: _sizes(there))
    if _is_finished(there, sizes, manifest):
        print(f"{redact(url)}: holds this dataset already")
        return
    if _names_other(there, sizes, mark):
        raise ValueError(
            f"{redact(url)}: holds {min(sizes)} and no upload of this dataset; choose another URL, "
            "or delete what is there"
        )
    _send_bytes(there, MARK, mark)
    files = {path.relative_to(dataset_dir).as_posix(): path for path in _files(dataset_dir)}
    missing = {name: at for name, at in files.items() if sizes.get(name) != at.stat().st_size}
    _send_files(there, missing, console)
    _send_bytes(there, FILE_NAME, manifest)
    _persist(there, lambda: there.fs.rm_file(there.at(MARK)))
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
    """Everything but the manifest; what begins with a dot is of a build."""
    for path in sorted(dataset_dir.rglob("*")):
        inside = path.relative_to(dataset_dir)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not is_hidden and inside.as_posix() != FILE_NAME:
            yield path


def _sizes(there: Destination) -> dict[str, int]:
    """Bytes of each object below the folder."""
    there.fs.invalidate_cache()
    found = there.fs.find(there.path, detail=True)
    return {str(name).removeprefix(there.at("")): int(one["size"]) for name, one in found.items()}


def _is_finished(there: Destination, sizes: dict[str, int], manifest: bytes) -> bool:
    if sizes.get(FILE_NAME) != len(manifest):
        return False
    found: bytes = _persist(there, lambda: there.fs.cat_file(there.at(FILE_NAME)))
    return found == manifest


def _names_other(there: Destination, sizes: dict[str, int], mark: bytes) -> bool:
    """Whether something lies there that no upload of this dataset sent."""
    if not sizes:
        return False
    if MARK not in sizes or FILE_NAME in sizes:
        return True
    found: bytes = _persist(there, lambda: there.fs.cat_file(there.at(MARK)))
    return found != mark


def _send_files(there: Destination, files: dict[str, Path], console: Console | None) -> None:
    with bytes_progress(console) as progress:
        total = sum(path.stat().st_size for path in files.values())
        bar = progress.add_task("uploading", total=total)
        with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
            sent = {pool.submit(_send_file, there, *item): item[1] for item in files.items()}
            try:
                for future in as_completed(sent):
                    future.result()
                    progress.advance(bar, sent[future].stat().st_size)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _send_file(there: Destination, name: str, path: Path) -> None:
    _persist(there, lambda: there.fs.put_file(str(path), there.at(name)), name=name)
    _check_size(there, name, path.stat().st_size)


def _send_bytes(there: Destination, name: str, content: bytes) -> None:
    _persist(there, lambda: there.fs.pipe_file(there.at(name), content), name=name)
    _check_size(there, name, len(content))


def _check_size(there: Destination, name: str, size: int) -> None:
    """The store has what it took."""
    there.fs.invalidate_cache()
    found = _persist(there, lambda: there.fs.info(there.at(name)), name=name)["size"]
    if found != size:
        raise StoreError(f"{redact(there.url)}/{name}: has {found} bytes, {size} were sent")


def _persist(there: Destination, ask: Callable[[], Any], *, name: str = "") -> Any:
    """What the store answers, asked again where a later attempt may do better."""
    where = f"{there.url.rstrip('/')}/{name}" if name else there.url
    pauses = iter(PAUSES)
    while True:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - every store has classes of its own
            pause = next(pauses, None)
            if pause is None or is_final(error):
                with asking(where):
                    raise
            time.sleep(pause)


if __name__ == "__main__":
    main(sys.argv[1:])
