"""Builds of text: the tokenizer is made first, then documents become token blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.batch import ENCODED
from pipeline.blocks import TokenBlocks
from pipeline.config import TextPipelineConfig
from pipeline.corpus import Portion
from pipeline.decide import Decision
from pipeline.encoder import token_dtype
from pipeline.manifest import Tokenizer
from pipeline.runner import Engine
from pipeline.shared_work import give
from pipeline.stages import EncodedDocuments
from pipeline.tokenizer import write_tokenizer
from pipeline.tokenizer_pass import make_tokenizer
from pipeline.work import WorkFolder


def prepare(
    config: TextPipelineConfig, portions: Sequence[Portion], engine: Engine, work: WorkFolder
) -> "TextKind":
    """Load or make the tokenizer."""
    text, tokenizer = make_tokenizer(config, portions, engine, work)
    return TextKind(config, text, tokenizer)


@dataclass(frozen=True, slots=True)
class TextKind:
    """A build of text whose tokenizer is settled."""

    config: TextPipelineConfig
    tokenizer_text: str
    """Text of tokenizer.json."""
    tokenizer: Tokenizer

    @property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.sha256

    @property
    def schema(self) -> pa.Schema:
        """Tokens."""
        return ENCODED

    @property
    def cutter(self) -> TokenBlocks:
        """Token blocks."""
        return TokenBlocks(self._dtype.name, self.config.shards.block_tokens)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(token_dtype(self.tokenizer.vocab_size))

    def target_weight(self, target_bytes: int) -> int:
        """Tokens of a shard."""
        return max(1, target_bytes // self._dtype.itemsize)

    def encoded(self, listing: str, work: WorkFolder) -> beam.PTransform:
        """Documents, read, cleaned, filtered and encoded."""
        path = work.root / f"encoder-{self.tokenizer.sha256[:16]}.json"
        write_tokenizer(self.tokenizer_text, path)
        return EncodedDocuments(self.config, listing, work, give(work, path))

    def compare(self, work: WorkFolder, num_portions: int, records: str = "") -> None:
        """Nothing is compared."""
        del work, num_portions, records

    def report_fields(self, work: WorkFolder) -> dict[str, Any]:
        """Nothing more."""
        del work
        return {}

    def manifest_fields(self, decision: Decision) -> dict[str, Any]:
        """The tokenizer and the type of tokens."""
        del decision
        return {"tokenizer": self.tokenizer, "token_dtype": self._dtype.name}

    def write_beside(self, folder: Path) -> None:
        """Write the tokenizer."""
        write_tokenizer(self.tokenizer_text, folder / "tokenizer.json")
