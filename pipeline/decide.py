"""What the sums over the whole corpus decide: whether the build goes on, the split, the shards.

Read from the completion records one at a time, so memory does not grow with the corpus, and a
function of them alone, so the driver and every worker come to the same decision.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.batch import UNREADABLE, UNREADABLE_FILES, Count
from pipeline.funnel import nothing_left, top_reasons
from pipeline.leaks import without_leaks
from pipeline.plan import Histogram, ShardPlan, plan_shards
from pipeline.portions import Placement, add_counts, read_record, without_excluded
from pipeline.refused import RefusedError
from pipeline.rejects import Tally, add_tallies
from pipeline.shared_work import Files, excluded_at, place_of
from pipeline.split import (
    Candidates,
    documents_threshold,
    fraction_threshold,
    merge_candidates,
    no_candidates,
)
from pipeline.work import WorkFolder, write_json


@dataclass(frozen=True, slots=True)
class Terms:
    """What a decision depends on beside the completion records; travels to Beam workers."""

    work: WorkFolder
    """Of the build."""
    placement: Placement
    """Decides each document's place."""
    num_portions: int
    """Length of the plan of the corpus."""
    corpus_bytes: int
    """Of all files as stored."""
    target_weight: int
    """Wished weight of a shard: tokens of text."""
    max_bad_fraction: float
    """A larger share of unreadable records, or of bytes, refuses the build."""
    config_hash: str
    """Of the config that decides bytes."""
    validation_paths: tuple[str, ...] = ()
    """Globs of the split, which have to match something."""
    compares: bool = False
    """Documents are compared over the whole corpus, and some of them excluded."""
    records: str = ""
    """Of the fingerprints of all portions, `records_hash`; without it they are not checked."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The sums over all portions, and the plan that follows from them."""

    plan: ShardPlan
    """All shards."""
    counts: tuple[Count, ...]
    """One per stage, in order."""
    tallies: tuple[Tally, ...]
    """Rejects by stage and reason."""
    classes: tuple[str, ...] = ()
    """Names of the classes of images, in order of class index."""


@dataclass(slots=True)
class _Sums:
    histogram: Histogram
    candidates: Candidates
    counts: tuple[Count, ...] = ()
    tallies: tuple[Tally, ...] = ()
    spills: tuple[str, ...] = ()


def make_plan(terms: Terms, work: WorkFolder) -> ShardPlan:
    """The plan; the names of the classes lie in the work folder when it is made."""
    decision = decide(replace(terms, work=work))
    write_json(work.classes, list(decision.classes))
    return decision.plan


def decide(terms: Terms) -> Decision:
    """Sum the completion records of all portions and plan the shards.

    Raises:
        RefusedError: too many unreadable records, or no documents to train on.
    """
    digest, found = hashlib.sha256(terms.config_hash.encode()), []
    sums = _Sums(np.zeros((2, 2**terms.placement.partition_bits), np.int64), no_candidates())
    excluded = excluded_at(place_of(terms.work, terms.work.excluded)) if terms.compares else None
    spills: list[str] = []
    classes: set[str] = set()
    for index, (path, sketch) in enumerate(zip(_records(terms), _sketches(terms), strict=True)):
        record = None if path is None else read_record(path)
        assert record is not None, f"portion {index} has no completion record"
        if excluded is not None:
            record = without_excluded(record, terms.placement, excluded, sketch)
        digest.update(record.fingerprint.encode())
        found.append(record.fingerprint)
        sums.histogram += record.histogram
        limit = max(terms.placement.documents, 1)
        sums.candidates = merge_candidates(sums.candidates, record.candidates, limit)
        sums.counts = add_counts(sums.counts, record.counts)
        sums.tallies = tuple(add_tallies([*sums.tallies, *record.tallies]))
        spills.extend(record.spills)
        classes.update(record.classes)
    if terms.records not in ("", records_hash(found)):
        raise RefusedError(
            f"{terms.work.root}: another build writes there too, perhaps a job that an engine goes "
            "on with behind a build that was stopped; cancel it, and run the same command again"
        )
    _refuse_unreadable(sums, terms)
    threshold = _split(sums, terms.placement)
    sums.histogram, fingerprint = without_leaks(sums.histogram, digest.hexdigest(), terms.work)
    _refuse_empty(sums, terms)
    plan = plan_shards(
        sums.histogram,
        split_threshold=threshold,
        target_weight=terms.target_weight,
        fingerprint=fingerprint,
        spills=tuple(spills),
    )
    return Decision(plan, sums.counts, sums.tallies, tuple(in_class_order(classes)))


def records_hash(fingerprints: Iterable[str]) -> str:
    """One fingerprint of those of all portions, in order."""
    return hashlib.sha256("".join(fingerprints).encode()).hexdigest()


def in_class_order(names: set[str]) -> list[str]:
    """Names sorted; where all are numbers, by value: 10 classes or more of 0, 1, 2 keep theirs."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _records(terms: Terms) -> Iterable[Path | None]:
    return Files(terms.work, [terms.work.portion(index) for index in range(terms.num_portions)])


def _sketches(terms: Terms) -> Iterable[Path | None]:
    """The file that each portion left for a comparison, if it left one."""
    if not terms.compares:
        return [None] * terms.num_portions
    return Files(terms.work, [terms.work.sketch(index) for index in range(terms.num_portions)])


def _split(sums: _Sums, placement: Placement) -> int:
    """The threshold of the split; an exact number moves its documents to validation here."""
    if not placement.documents:
        return fraction_threshold(placement.fraction)
    threshold = documents_threshold(sums.candidates, placement.documents)
    chosen = sums.candidates.split_hash < np.uint64(threshold)
    where, weight = sums.candidates.partition[chosen], sums.candidates.weight[chosen]
    np.add.at(sums.histogram[0], where, -weight)
    np.add.at(sums.histogram[1], where, weight)
    return threshold


def _refuse_unreadable(sums: _Sums, terms: Terms) -> None:
    """By records, and by bytes: a lost file is one reject, whatever number of records it held."""
    bad = [one for one in sums.tallies if one.reason in UNREADABLE]
    num_bad = sum(one.records for one in bad)
    num_read = sums.counts[0].records_in if sums.counts else 0
    lost = sum(one.bytes for one in bad if one.reason in UNREADABLE_FILES)
    allowed = terms.max_bad_fraction
    if num_bad <= allowed * num_read and lost <= allowed * terms.corpus_bytes or allowed == 1:
        return
    shares = num_bad / max(num_read, 1), lost / max(terms.corpus_bytes, 1)
    files = f" and {min(shares[1], 1):.2%} of the corpus bytes" if lost else ""
    needed = min(max(shares) + 0.0001, 1)
    raise RefusedError(
        f"{num_bad:,} of {num_read:,} records ({shares[0]:.2%}){files} could not be read, "
        f"max_bad_fraction allows {allowed:.2%}: {top_reasons(bad)}. Mend the corpus, or allow "
        f"more with max_bad_fraction={needed:.4f}: what was read is kept"
    )


def _refuse_empty(sums: _Sums, terms: Terms) -> None:
    train, validation = (bool(weights.any()) for weights in sums.histogram)
    if not (train or validation):
        raise RefusedError(nothing_left(sums.counts, sums.tallies))
    if not train:
        cure = (
            "narrow split.validation_paths"
            if terms.validation_paths
            else ("lower split.fraction or split.documents")
        )
        raise RefusedError(
            f"the validation split takes all documents and leaves none to train on; {cure}"
        )
    if terms.validation_paths and not validation:
        raise RefusedError(
            f"split.validation_paths: {', '.join(terms.validation_paths)} matches none of the "
            "documents that are left; name their files as rejects do, relative to corpus.path, "
            "and behind that images in them: data.tar/test/1.jpg"
        )
