"""The funnel of a corpus: what each stage took in and let through, and why the rest did not pass.

A pass over the corpus that writes no completion records sums it by batches; the same sentence tells
a user that nothing is left, whichever way it was summed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.batch import UNREADABLE_FILES, Batch, Count
from pipeline.portions import add_counts
from pipeline.rejects import Tally, add_tallies, tally

SUMMARY_REASONS = 5
"""So many reasons are named when a build is refused."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """Sums over batches, in any order."""

    counts: tuple[Count, ...] = ()
    """One per stage, in order."""
    tallies: tuple[Tally, ...] = ()
    """Rejects by stage and reason."""


def batch_funnel(batch: Batch) -> Funnel:
    """The funnel of one batch."""
    return Funnel(batch.counts, tuple(tally(batch.rejects)) if batch.rejects.num_rows else ())


def add_funnels(parts: Iterable[Funnel]) -> Funnel:
    """The sums of several funnels."""
    sums = Funnel()
    for part in parts:
        counts = add_counts(sums.counts, part.counts)
        sums = Funnel(counts, tuple(add_tallies([*sums.tallies, *part.tallies])))
    return sums


def nothing_left(counts: Sequence[Count], tallies: Sequence[Tally]) -> str:
    """Why a build has no documents: the funnel, and the reasons that took most of them."""
    stages = [f"{one.stage} {one.records_in:,} -> {one.records_out:,}" for one in counts]
    funnel = ", ".join(stages) or "nothing was read"
    return f"no documents are left ({funnel}). {top_reasons(tallies)}".strip()


def top_reasons(tallies: Iterable[Tally]) -> str:
    """The most frequent reasons, each with its first reject."""
    ranked = sorted(tallies, key=lambda one: -one.records)
    return "; ".join(map(_describe, ranked[:SUMMARY_REASONS]))


def _describe(one: Tally) -> str:
    first = one.examples[0] if one.examples else {"source": "", "position": "", "detail": ""}
    detail = f": {first['detail']}" if first["detail"] else ""
    others = sorted({str(each["source"]) for each in one.examples} - {str(first["source"])})
    also = f"; also {', '.join(others)}" if others and one.reason in UNREADABLE_FILES else ""
    place = f"first {first['source']} at {first['position']}{detail}"
    return f"{one.reason} {one.records:,} ({place}{also})"
