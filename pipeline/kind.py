"""What a build of one kind of samples, text or images, does in its own way.

The driver, the shuffle, the plan, the shards and the publication know no more of a kind than this.
"""

from pathlib import Path
from typing import Any, Protocol

import apache_beam as beam
import pyarrow as pa

from pipeline.decide import Decision
from pipeline.shards import SampleCutter
from pipeline.work import WorkFolder


class Kind(Protocol):
    """A prepared build of one kind."""

    @property
    def fingerprint(self) -> str:
        """Of what the samples depend on beside config and corpus: the tokenizer, say."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Of encoded documents."""
        ...

    @property
    def cutter(self) -> SampleCutter:
        """What makes samples of the documents of a shard."""
        ...

    def target_weight(self, target_bytes: int) -> int:
        """The weight of a shard of a wished size."""
        ...

    def encoded(self, listing: str, work: WorkFolder) -> beam.PTransform:
        """Nothing -> batches of rows of `ENCODED`, of all portions."""
        ...

    def compare(
        self, work: WorkFolder, num_portions: int, records: str = ""
    ) -> beam.PTransform | None:
        """What excludes documents by a look at all of them: see `pipeline/exclude.py`.

        It notes `records`, the `records_hash` of the portions, when it is finished.
        """
        ...

    def report_fields(self, work: WorkFolder) -> dict[str, Any]:
        """What the report says of this kind alone."""
        ...

    def manifest_fields(self, decision: Decision) -> dict[str, Any]:
        """What the manifest says of this kind."""
        ...

    def write_beside(self, folder: Path) -> None:
        """Write what lies beside the shards of this kind."""
        ...
