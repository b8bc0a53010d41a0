"""`python -m pipeline.index DATASET`: indexes and sidecars, made from the tars of a dataset.

A build writes them already; this renews them, and makes them where a copy left them behind.
`<shard>.tar.idx` and `.nv-meta/` are Megatron-Energon's, `<split>.wids.json` is of wids, and
`README.md` tells Hugging Face datasets which files are data, and what the members of images are.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from configs.command import run
from pipeline.manifest import Manifest, Shard
from pipeline.mirror import Mirror, mirror_of
from pipeline.tar import index_path, render_index, scan
from pipeline.work import write_atomic

CARD = "README.md"
ENERGON_FOLDER = ".nv-meta"
ENERGON_VERSION = "7.4.0"
"""The version whose files these are."""
ENERGON_SPLITS = {"train": "train", "validation": "val"}

_TEXT_CARD = """
# Tokenized text

WebDataset shards of token blocks, made by `python -m pipeline`. `manifest.json` lists every shard
with its size and sha256; `python -m pipeline.verify` checks them. Each sample of a tar is

- `tokens.npy`: token ids; the tokenizer is `tokenizer.json`
- `docs.npy`: offsets at which documents begin
- `json`: the keys of the documents in the block, and its number of tokens
"""
_IMAGE_CARD = """
# Images

WebDataset shards of images, made by `python -m pipeline`. `manifest.json` lists every shard with
its size and sha256, and the classes; `python -m pipeline.verify` checks it. Each sample of a tar is

- `jpg`, `png` or `webp`: the image
- `cls`, where the images have classes: the index of its class in `manifest.json`
- `txt`, where they have captions: the caption
- `json`: width and height, and what the corpus said of the image; where that is more than a name,
  Hugging Face datasets reads it from 4.7 on
"""
_CARDS = {"text": _TEXT_CARD, "image": _IMAGE_CARD}
_METADATA = ("metadata_columns", "metadata_members")
"""Keys of a corpus that name what may be null in most samples, or of several types."""
_CARD_USE = """
To read it:

    datasets.load_dataset("FOLDER", split="train")
    webdataset.WebDataset("FOLDER/train-{000000..LAST}.tar").decode()
"""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.index", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of a dataset")
    dataset = parser.parse_args(argv).dataset
    run(lambda: index_dataset(dataset))


def index_dataset(dataset: str | Path) -> None:
    """Write the index of every shard, then the sidecars.

    Raises:
        FileNotFoundError: no dataset, or a shard is missing.
        ValueError: a shard is damaged, or is not the one of the manifest.
        StoreError: the store does not give it, or does not take it.
    """
    with mirror_of(dataset) as mirror:
        manifest = mirror.manifest()
        _remove_unfinished(manifest, mirror.folder)
        shards = [shard for shards in manifest.splits.values() for shard in shards]
        for shard in shards:
            index = index_path(mirror.folder / shard.name)
            write_atomic(index, _render_tar_index(mirror, shard))
            mirror.send(index.name)
        write_sidecars(manifest, mirror.folder)
        for name in (CARD, *render_sidecars(manifest)):
            mirror.send(name)
        told = f"indexes of {len(shards)} shards and the sidecars written"
        sys.stdout.write(f"{mirror.name}: {told}\n")


def _render_tar_index(mirror: Mirror, shard: Shard) -> bytes:
    """The index of a shard, from the headers of its tar."""
    where = f"{mirror.name}/{shard.name}"
    if not (mirror.folder / shard.name).exists():
        raise FileNotFoundError(f"{where}: is missing; the manifest lists it")
    offsets, end = [], 0
    try:
        with mirror.whole(shard.name) as path:
            for _, members in groupby(scan(path), key=lambda member: member.key):
                sample = list(members)
                offsets.append(sample[0].offset)
                end = sample[-1].stop
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(offsets) != shard.samples:
        raise ValueError(f"{where}: {len(offsets)} samples, the manifest has {shard.samples}")
    return render_index([*offsets, end])


def write_sidecars(manifest: Manifest, folder: Path) -> None:
    """Write what lets other libraries read the dataset without conversion.

    A card that is there stays: its text may be the user's.
    """
    if not (folder / CARD).exists():
        write_atomic(folder / CARD, render_card(manifest).encode())
    (folder / ENERGON_FOLDER).mkdir(exist_ok=True)
    for name, tree in render_sidecars(manifest).items():
        is_yaml = name.endswith(".yaml")
        text = yaml.safe_dump(tree, sort_keys=False).encode() if is_yaml else _json(tree)
        write_atomic(folder / name, text)


def render_card(manifest: Manifest) -> str:
    """The dataset card, from whose front matter Hugging Face datasets knows tars from the rest."""
    front = yaml.safe_dump(card_front(manifest), sort_keys=False)
    return f"---\n{front}---\n{_CARDS.get(manifest.kind, '')}{_CARD_USE}"


def card_front(manifest: Manifest) -> dict[str, Any]:
    """The front matter of the card."""
    files = [{"split": split, "path": f"{split}-*.tar"} for split in sorted(manifest.splits)]
    front = {"configs": [{"config_name": "default", "data_files": files}]}
    corpus = manifest.config.get("corpus", {})
    if not any(corpus.get(name) for name in _METADATA):
        return front  # it infers what older versions of it take, too
    return front | {"dataset_info": {"features": _image_features(manifest.config)}}


def _image_features(config: dict[str, Any]) -> list[dict[str, str]]:
    """The members of each sample by their types, which Hugging Face datasets else infers.

    It would infer the columns of `json` from five samples, and fail where metadata differ later.
    """
    from pipeline.images.encode import EXTENSIONS  # here: builds of text need no decoders, 0.3 s

    corpus = config["corpus"]
    reader = import_module(f"pipeline.readers.{corpus['format']}")
    image = EXTENSIONS[config["images"]["encode"]["format"]]
    members = sorted([image, "json", *reader.members(SimpleNamespace(**corpus))])
    types = {image: "image", "cls": "int64", "json": "json"}
    names = [*members, "__key__", "__url__"]
    return [{"name": name, "dtype": types.get(name, "string")} for name in names]


def render_sidecars(manifest: Manifest) -> dict[str, Any]:
    """The sidecars as trees, by their path in the dataset folder."""
    trees: dict[str, Any] = {
        f"{split}.wids.json": render_wids(split, shards)
        for split, shards in manifest.splits.items()
    }
    energon = render_energon(manifest)
    return trees | {f"{ENERGON_FOLDER}/{name}": tree for name, tree in energon.items()}


def render_wids(split: str, shards: Sequence[Shard]) -> dict[str, Any]:
    """The shard index of wids; it needs no md5, and the manifest has the sha256."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": split,
        "shardlist": [
            {"url": shard.name, "nsamples": shard.samples, "filesize": shard.bytes}
            for shard in shards
        ],
    }


def render_energon(manifest: Manifest) -> dict[str, Any]:
    """The files of Energon's folder, by name."""
    names = {split: [shard.name for shard in shards] for split, shards in manifest.splits.items()}
    counts = {shard.name: shard.samples for shards in manifest.splits.values() for shard in shards}
    return {
        ".info.json": {"energon_version": ENERGON_VERSION, "shard_counts": counts},
        "split.yaml": {
            "split_parts": {
                ENERGON_SPLITS.get(split, split): shards for split, shards in names.items()
            },
            "exclude": [],
        },
        "dataset.yaml": {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"},
    }


def _remove_unfinished(manifest: Manifest, dataset_dir: Path) -> None:
    """Temporary files that a killed run of this verb left."""
    tars = [shard.name for shards in manifest.splits.values() for shard in shards]
    names = {CARD, *render_sidecars(manifest), *(index_path(Path(name)).name for name in tars)}
    for folder in (dataset_dir, dataset_dir / ENERGON_FOLDER):
        for path in folder.glob(".*.*"):
            final = path.parent / path.stem.removeprefix(".")
            if str(final.relative_to(dataset_dir)) in names:
                path.unlink()


def _json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()


if __name__ == "__main__":
    main(sys.argv[1:])
