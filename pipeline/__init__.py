"""Preparation: an Apache Beam pipeline that turns corpora into a dataset of WebDataset tars."""

import logging
import os

# Arrow's allocator, unless told otherwise, gives memory back after 10 ms and takes it again as huge
# pages that Linux clears: 5 of 52 CPU seconds of a build of 2.9 GB of text. A second is enough;
# where it never gave any back, photographs took 90 MiB more. Read when pyarrow is imported.
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")
os.environ.setdefault("MIMALLOC_ALLOW_THP", "0")

# Beam warns at its import of a Google library that nothing here needs
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
