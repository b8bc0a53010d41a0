"""Images that users bring to a trained model: files, folders of files, or a dataset of ours.

They are listed without being read, and decoded by loader workers as in validation, so that none of
them can end the process.
"""

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.manifest import FILE_NAME, Manifest
from training.augment.upright import MAX_PIXELS
from training.config import ImageTrainingConfig
from training.data.chunks import ChunkReader
from training.data.decoders import Decoders
from training.data.image_chunks import NO_CLASS, parse_images
from training.data.shards import load_manifest

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Of the files in a folder that are taken for images."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that was found."""

    key: str
    """Path of a file, or key of a sample."""
    split: str | None = None
    """Of a sample."""
    class_name: str | None = None
    """Class of a sample, or the folder inside the given one that holds a file, if there is one."""
    stored: memoryview | None = None
    """Bytes of a sample; those of a file are read when it is its turn."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Images of one forward pass."""

    images: list[Listed]
    """The good ones."""
    pixels: Tensor
    """Theirs, 8 bit, (B, size, size, 3)."""
    faults: list[str]
    """What is wrong with each of the others."""


def find_images(places: Iterable[str]) -> Iterator[Listed]:
    """Images of files, folders and datasets, in the order of places, and there of paths.

    Raises:
        FileNotFoundError: no such place; told before any image is read.
        ValueError: a dataset of something else.
    """
    return chain.from_iterable([_source(place) for place in places])


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """The limit of `decode_images` as a flag."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="a larger image, which may be a decompression bomb, is not decoded (default: "
        f"{MAX_PIXELS}, as `images.decode.max_pixels` of the pipeline)",
    )


def decode_images(
    images: Iterator[Listed],
    config: ImageTrainingConfig,
    *,
    micro_batch_size: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded]:
    """Images as the run of a config sees them in validation, one batch ahead of who takes them.

    One of more than `max_pixels` is at fault, by its header.
    """
    recipe = config.augment.plain_recipe(config.model.config.image_size)
    workers = Decoders(
        replace(recipe, of_dataset=False, max_pixels=max_pixels),
        num_workers=config.data.num_loader_workers,
    )
    with closing(workers), ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(_decode, list(islice(images, micro_batch_size)), workers)
        while (decoded := ahead.result()).images or decoded.faults:
            ahead = thread.submit(_decode, list(islice(images, micro_batch_size)), workers)
            yield decoded


def _source(place: str) -> Iterator[Listed]:
    path = Path(place)
    if "://" in place or (path / FILE_NAME).is_file():
        manifest = load_manifest(place)
        if manifest.kind != "image":
            raise ValueError(f"{place}: holds samples of kind {manifest.kind}, expected images")
        return _of_dataset(place, manifest)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return iter([Listed(place)])
    raise FileNotFoundError(f"{place}: no such file or folder")


def _of_folder(folder: Path) -> Iterator[Listed]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            inside = path.parent.relative_to(folder)
            yield Listed(str(path), class_name=inside.name or None)


def _of_dataset(dataset_dir: str, manifest: Manifest) -> Iterator[Listed]:
    """All splits, chunk by verified chunk."""
    for split, shards in sorted(manifest.splits.items()):
        reader = ChunkReader(dataset_dir, shards, parse=parse_images, cache_mib=256)
        for number in range(len(reader.table)):
            reader.expect(range(number, min(number + 8, len(reader.table))))
            chunk = reader.get([number])[number]
            encoded = chunk.encoded(np.arange(len(chunk)))
            for row, of_class in enumerate(chunk.classes.tolist()):
                name = None if of_class == NO_CLASS else manifest.classes[of_class]
                yield Listed(chunk.key(row), split, name, encoded[row])
        reader.close()


def _decode(images: list[Listed], workers: Decoders) -> Decoded:
    faults: list[str] = []
    readable, contents = [], []
    for image in images:
        try:
            stored = image.stored
            contents.append(Path(image.key).read_bytes() if stored is None else stored)
            readable.append(image)
        except OSError as error:
            faults.append(str(error))
    pixels, found = workers.decode(contents, range(len(contents)))
    faults += [f"{readable[row].key}: {fault}" for row, fault in sorted(found.items())]
    good = [row for row in range(len(readable)) if row not in found]
    return Decoded([readable[row] for row in good], torch.from_numpy(pixels[good]), faults)
