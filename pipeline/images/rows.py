"""The rows of an image batch: encoded images with what their corpus says of them."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.batch import ENCODED
from pipeline.corpus import Portion

IMAGES = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),  # corpus file, relative to its root
        ("position", pa.int64()),  # of the record in its file: place of a member, or row number
        ("image", pa.large_binary()),  # as stored behind the reader, as the dataset holds it later
        ("class", pa.string()),  # name of the class; null where the corpus has none
        ("caption", pa.string()),
        ("metadata", pa.string()),  # JSON object
    ]
)
"""The columns of a batch's `documents` where the corpus is of images."""

SAID = ("class", "caption", "metadata")
"""What the corpus says of an image."""

ENCODED_IMAGES = pa.schema([*ENCODED, *(IMAGES.field(name) for name in SAID)])
"""What the last stage before the shuffle makes of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image that could be read."""

    source: str
    """Corpus file."""
    position: int
    """In its file."""
    image: bytes
    """The file of the image."""
    class_name: str | None = None
    """Where the corpus has classes."""
    caption: str | None = None
    """Where the corpus has captions."""
    metadata: str | None = None
    """JSON object."""

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return len(self.image)


def image_rows(portion: Portion, records: list[ImageRecord]) -> pa.RecordBatch:
    """Rows of `IMAGES`."""
    del portion
    columns = [
        pa.array([one.source for one in records], pa.string()).dictionary_encode(),
        pa.array([one.position for one in records], pa.int64()),
        pa.array([one.image for one in records], pa.large_binary()),
        pa.array([one.class_name for one in records], pa.string()),
        pa.array([one.caption for one in records], pa.string()),
        pa.array([one.metadata for one in records], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=IMAGES)
