"""Stage: the Gopher quality filter (Rae et al. 2021) with the defaults that datatrove gave it.

The form of every filter: a `Config` whose fields are plain thresholds and whose `apply` maps a
batch to a batch; a document that fails a rule becomes a reject with the rule's reason and the
number measured. The rules are made for English: a text without spaces is one long word.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from pipeline.batch import Batch, split_off
from pipeline.word_statistics import MAX_STOP_WORDS, word_statistics

STAGE = "quality"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Thresholds of the Gopher quality filter, in the order in which they are checked.

    Words, tokens and lines are what `pipeline/word_statistics.py` defines. A ratio without a
    denominator (no token, no word, no line) is 0.
    """

    min_words: int = 50
    """Fewer words: reject `gopher_short_doc`."""
    max_words: int = 100_000
    """More words: reject `gopher_long_doc`."""
    min_mean_word_length: float = 3.0
    """Shorter words, in characters on average: reject `gopher_below_avg_threshold`."""
    max_mean_word_length: float = 10.0
    """Longer words, in characters on average: reject `gopher_above_avg_threshold`."""
    max_hash_ratio: float = 0.1
    """More `#` per token: reject `gopher_too_many_hashes`."""
    max_ellipsis_ratio: float = 0.1
    """More ellipses (`...` and U+2026) per token: reject `gopher_too_many_ellipsis`."""
    max_bullet_lines_ratio: float = 0.9
    """A larger share of lines that begin with a bullet: reject `gopher_too_many_bullets`."""
    max_ellipsis_lines_ratio: float = 0.3
    """A larger share of lines ending in an ellipsis: reject `gopher_too_many_end_ellipsis`."""
    min_alphabetic_ratio: float = 0.8
    """A smaller share of tokens with a letter: reject `gopher_below_alpha_threshold`."""
    min_stop_words: int = 2
    """Fewer distinct words of `stop_words`: reject `gopher_enough_stop_words`."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that nearly every text has, at most 63; case matters."""

    def __post_init__(self) -> None:
        """Check the fields, and against each other."""
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{name}: {value}; a number is allowed")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words: {self.min_words} is above max_words {self.max_words}")
        if self.min_mean_word_length > self.max_mean_word_length:
            raise ValueError(
                f"min_mean_word_length: {self.min_mean_word_length} is above "
                f"max_mean_word_length {self.max_mean_word_length}"
            )
        if len(self.stop_words) > MAX_STOP_WORDS:
            raise ValueError(f"stop_words: {len(self.stop_words)}, at most {MAX_STOP_WORDS}")
        if self.min_stop_words > len(set(self.stop_words)):
            raise ValueError(
                f"min_stop_words: {self.min_stop_words}, but stop_words has only "
                f"{len(set(self.stop_words))}"
            )

    def apply(self, batch: Batch) -> Batch:
        """The batch without the documents that fail; the first rule failed is the reason."""
        measured = _measure(batch, self.stop_words)
        rules = self._rules()
        fails = np.array([rule.fails(measured[rule.measure], rule.limit) for rule in rules])
        keep: npt.NDArray[np.bool_] = ~np.any(fails, axis=0)
        first = fails.argmax(axis=0)
        rows = np.flatnonzero(~keep).tolist()
        reasons = [rules[first[row]].reason for row in rows]
        details = [rules[first[row]].describe(measured, row) for row in rows]
        return split_off(batch, STAGE, keep, reasons, details)

    def _rules(self) -> list["_Rule"]:
        """In the order of the checks."""
        below, above = np.less, np.greater
        return [
            _Rule("gopher_short_doc", "words", below, self.min_words),
            _Rule("gopher_long_doc", "words", above, self.max_words),
            _Rule(
                "gopher_below_avg_threshold", "mean_word_length", below, self.min_mean_word_length
            ),
            _Rule(
                "gopher_above_avg_threshold", "mean_word_length", above, self.max_mean_word_length
            ),
            _Rule("gopher_too_many_hashes", "hash_ratio", above, self.max_hash_ratio),
            _Rule("gopher_too_many_ellipsis", "ellipsis_ratio", above, self.max_ellipsis_ratio),
            _Rule(
                "gopher_too_many_bullets", "bullet_lines_ratio", above, self.max_bullet_lines_ratio
            ),
            _Rule(
                "gopher_too_many_end_ellipsis",
                "ellipsis_lines_ratio",
                above,
                self.max_ellipsis_lines_ratio,
            ),
            _Rule(
                "gopher_below_alpha_threshold", "alphabetic_ratio", below, self.min_alphabetic_ratio
            ),
            _Rule("gopher_enough_stop_words", "stop_words", below, self.min_stop_words),
        ]


@dataclass(slots=True, kw_only=True)
class FilterQuality(beam.PTransform):  # type: ignore[misc]
    """Batches -> batches with the documents of low quality among the rejects."""

    thresholds: Config
    """The rules."""

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | "ApplyRules" >> beam.Map(self.thresholds.apply).with_output_types(Batch)


class _Rule(NamedTuple):
    reason: str
    measure: str
    fails: Callable[..., npt.NDArray[np.bool_]]
    limit: float

    def describe(self, measured: dict[str, npt.NDArray[np.float64]], row: int) -> str:
        sign = "<" if self.fails is np.less else ">"
        return f"{self.measure} {measured[self.measure][row]:.6g} {sign} {self.limit:g}"


def _measure(batch: Batch, stop_words: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
    found = word_statistics(batch.documents, stop_words=stop_words)
    tokens, words, lines = found["tokens"], found["words"], found["lines"]
    return {
        "words": words.astype(np.float64),
        "mean_word_length": _ratio(found["word_characters"], words),
        "hash_ratio": _ratio(found["hashes"], tokens),
        "ellipsis_ratio": _ratio(found["ellipses"], tokens),
        "bullet_lines_ratio": _ratio(found["bullet_lines"], lines),
        "ellipsis_lines_ratio": _ratio(found["ellipsis_lines"], lines),
        "alphabetic_ratio": _ratio(found["alphabetic_tokens"], tokens),
        "stop_words": found["stop_words"].astype(np.float64),
    }


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return part / np.maximum(whole, 1)
