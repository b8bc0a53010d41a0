"""Image samples: each image of a shard with its class, caption and metadata."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.images.rows import with_own
from pipeline.shared_work import read_place
from pipeline.tar import Sample


@dataclass(frozen=True, slots=True)
class ImageSamples:
    """How the images of a shard become samples, all with the same members."""

    extension: str
    """Of the image: jpg, png or webp."""
    members: tuple[str, ...]
    """What goes beside it, of `cls` and `txt`; `json` always does."""
    classes: str
    """Place of the file with the names of classes, in order of class index, made with the plan."""

    def samples(self, shard_name: str, documents: pa.RecordBatch) -> Iterator[Sample]:
        """The samples of a shard from its images, in order, as rows of `ENCODED_IMAGES`.

        The key is the content hash; copies, where they are kept, are numbered: `<hash>-1`.
        """
        del shard_name
        names = json.loads(read_place(self.classes)) if "cls" in self.members else []
        index = {name: number for number, name in enumerate(names)}
        before, copies = b"", 0
        for row in _rows(documents):
            copies = copies + 1 if row["key"] == before else 0
            before = row["key"]
            key = f"{before.hex()}-{copies}" if copies else before.hex()
            yield Sample(key=key, files=self._files(row, index))

    def _files(self, row: dict[str, Any], index: dict[str, int]) -> dict[str, bytes]:
        files = {self.extension: row["payload"], "json": row["metadata"].encode()}
        if "cls" in self.members:
            files["cls"] = str(index[row["class"]]).encode()
        if "txt" in self.members:
            files["txt"] = row["caption"].encode()
        return files


def render_metadata(metadata: str | None, *, width: int, height: int) -> str:
    """The `json` of a sample: what the corpus says of the image, and its size in pixels."""
    tree = with_own(json.loads(metadata) if metadata else {}, {"width": width, "height": height})
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _rows(documents: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """One at a time: a shard of 256 MiB is not held twice."""
    columns = ("key", "payload", "class", "caption", "metadata")
    chosen = documents.select(columns)
    for number in range(chosen.num_rows):
        yield {name: chosen.column(name)[number].as_py() for name in columns}
