"""The rows of an image batch: encoded images with what their corpus says of them."""

import pyarrow as pa

IMAGES = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),  # corpus file, relative to its root
        ("position", pa.int64()),  # of the record in its file: offset of a member, or row number
        ("image", pa.large_binary()),  # as stored behind the reader, as the dataset holds it later
        ("class", pa.string()),  # name of the class; null where the corpus has none
        ("caption", pa.string()),
        ("metadata", pa.string()),  # JSON object, keys sorted
    ]
)
"""The columns of a batch's `documents` where the corpus is of images."""
