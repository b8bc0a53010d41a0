"""The rows of an image batch: encoded images with what their corpus says of them."""

import base64
import json
import math
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.batch import ENCODED

IMAGES = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),  # corpus file, relative to its root
        (
            "position",
            pa.int64(),
        ),  # of the record in its file: number of the member, or row; 0 of an image file
        ("image", pa.large_binary()),  # as stored behind the reader, as the dataset holds it later
        ("class", pa.string()),  # name of the class; null where the corpus has none
        ("caption", pa.string()),
        ("metadata", pa.string()),  # JSON object, keys sorted
        ("name", pa.string()),  # of the image in its file; null where the file is the image
    ]
)
"""The columns of a batch's `documents` where the corpus is of images."""

SAID = ("class", "caption", "metadata")
"""What the corpus says of an image."""

ENCODED_IMAGES = pa.schema([*ENCODED, *(IMAGES.field(name) for name in SAID)])
"""What the last stage before the shuffle makes of images."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What the name of an image ends with, in any case."""


MAX_DEPTH = 100
"""Of lists and objects in metadata: Python's own limit would end a worker."""


class ImageRecord(NamedTuple):
    """An image that could be read, still encoded."""

    source: str
    position: int
    image: bytes
    class_name: str | None = None
    caption: str | None = None
    metadata: str | None = None
    name: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the encoded image."""
        return len(self.image)


def image_documents(source: str, records: Sequence[ImageRecord]) -> pa.RecordBatch:
    """Rows of `IMAGES`; each record knows its own file, so `source` is not needed."""
    del source
    sources = pa.array([record.source for record in records], pa.string())
    columns = [
        sources.dictionary_encode(),
        pa.array([record.position for record in records], pa.int64()),
        pa.array([record.image for record in records], pa.large_binary()),
        pa.array([record.class_name for record in records], pa.string()),
        pa.array([record.caption for record in records], pa.string()),
        pa.array([record.metadata for record in records], pa.string()),
        pa.array([record.name for record in records], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=IMAGES)


def class_of(name: str) -> str | None:
    """The folder that directly holds a file: `train/cat/1.jpg` -> `cat`, `1.jpg` -> None."""
    return posixpath.basename(posixpath.dirname(name)) or None


def is_image(name: str) -> bool:
    """Whether a name is that of an image, and not hidden, nor in a hidden folder."""
    hidden = any(part.startswith(".") for part in name.removeprefix("./").split("/"))
    return not hidden and name.lower().endswith(EXTENSIONS)


def as_metadata(tree: dict[str, Any]) -> str | None:
    """A JSON object with sorted keys; nothing of an empty one.

    Raises:
        ValueError: it is nested too deeply, or holds half a character.
    """
    if not tree:
        return None
    plain = _plain(tree, 0)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text.encode()
    return text


def with_own(said: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Metadata and fields of ours: what the corpus says under their names is `corpus_NAME` then."""
    tree = dict(said)
    for name, value in own.items():
        if name in tree and tree[name] != value:
            other = f"corpus_{name}"
            while other in tree:
                other = f"corpus_{other}"
            tree[other] = tree[name]
        tree[name] = value
    return tree


def _plain(value: Any, depth: int) -> Any:
    """What JSON can hold: bytes as base64, dates and decimals as text, NaN and infinity as null."""
    if depth > MAX_DEPTH:
        raise ValueError(f"metadata is nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return {str(key): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
