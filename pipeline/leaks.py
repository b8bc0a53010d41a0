"""Leaks: documents of training that validation has, which training loses when shards are written.

The plan of the shards counts them, since nobody knows them before. Where a training shard holds
nothing else, no shard can be written; then the plan is made again without their weight.
"""

import hashlib

import numpy as np

from pipeline.plan import MAX_PARTITION_BITS, Histogram, ShardPlan
from pipeline.shards import written_row
from pipeline.shared_work import give
from pipeline.work import WorkFolder, read_json, write_json


def note_leaks(work: WorkFolder, plan: ShardPlan) -> bool:
    """Whether a finished shard of the plan is empty; if so, what leaked is noted for the next plan.

    Returns:
        True: the plan has to be made again, and its shards written.
    """
    rows = [written_row(work, planned) for planned in plan.shards]
    assert None not in rows, "a shard was not written"
    if all(row.shard.samples for row in rows if row):
        return False
    weights = [pair for row in rows if row for pair in row.leaked]
    write_json(work.leaks, {"plan": plan.shards[0].fingerprint, "weights": weights})
    give(work, work.leaks)
    return True


def without_leaks(
    histogram: Histogram, fingerprint: str, work: WorkFolder
) -> tuple[Histogram, str]:
    """The histogram and the fingerprint of a plan, if leaks were noted for it without them."""
    noted = read_json(work.leaks)
    if noted is None or noted["plan"] != fingerprint:
        return histogram, fingerprint
    bits = histogram.shape[1].bit_length() - 1
    where, weights = np.array(noted["weights"], np.int64).T
    left = histogram.copy()
    np.subtract.at(left[0], where >> (MAX_PARTITION_BITS - bits), weights)
    assert left.min() >= 0, "more leaked than there was"
    return left, hashlib.sha256(f"{fingerprint} without leaks".encode()).hexdigest()
