"""Copies among the documents of a shard: of equal keys, which are neighbours there, one stays.

Where the corpus is divided into splits already, a training shard is shown the documents that
validation has in its range, without payload: what is a copy of one of them is dropped.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.batch import REJECTS, concat
from pipeline.exclude import Excluded
from pipeline.hashes import key_halves
from pipeline.key import LEAK, REASON, STAGE, copy_of
from pipeline.plan import MAX_PARTITION_BITS, partitions
from pipeline.split import MARK, VALIDATION, validation_mask

Weights = tuple[tuple[int, int], ...]
"""Pairs of a hash partition, of the finest division, and a weight."""


def rows_of(piece: pa.RecordBatch, split: str, *, seed: int, threshold: int) -> pa.RecordBatch:
    """The documents of a split; of training, behind them, what is marked as validation's."""
    validation = pa.array(validation_mask(piece, seed=seed, threshold=threshold))
    if split == VALIDATION:
        return piece.filter(validation)
    own = piece.filter(pc.invert(validation))
    if MARK not in piece.schema.names:
        return own
    return concat([own, without_payload(piece.filter(validation))])


def without_payload(piece: pa.RecordBatch) -> pa.RecordBatch:
    """The piece, of whose marked documents nothing but key and origin is needed."""
    if MARK not in piece.schema.names:
        return piece
    payload = pa.scalar(b"", pa.large_binary())
    payload = pc.if_else(piece.column(MARK), payload, piece.column("payload"))
    return piece.set_column(
        piece.schema.names.index("payload"), piece.schema.field("payload"), payload
    )


def in_order(documents: pa.RecordBatch) -> pa.RecordBatch:
    """By shuffle hash, key, and of equal keys those of validation first, then by origin."""
    hashes = np.asarray(documents.column("hash"))
    order = np.argsort(hashes, kind="stable")
    if (np.diff(hashes[order]) == 0).any():
        halves = key_halves(documents.column("key"))
        positions = np.asarray(documents.column("position"))
        ranks = _ranks(documents.column("source"))
        trains = ~_marks(documents)
        order = np.lexsort((positions, ranks, trains, halves[:, 1], halves[:, 0], hashes))
    return documents.take(pa.array(order))


def drop_copies(
    documents: pa.RecordBatch, split: str, *, deduplicate: bool
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Those of a shard's documents, in order, that stay in it, and the others as rejects."""
    again, first = _copies(documents)
    marks = _marks(documents)
    own = marks if split == VALIDATION and marks.any() else ~marks
    leaks = own & ~marks & marks[first]
    denied = leaks | (own & again & deduplicate)
    stays = own & ~denied
    kept = documents if stays.all() else documents.filter(pa.array(stays))  # a copy of a shard
    originals = documents.take(pa.array(first[denied]))
    reasons = [LEAK if leak else REASON for leak in leaks[denied].tolist()]
    details = [copy_of(originals, row) for row in range(originals.num_rows)]
    return kept, _rejects(documents.filter(pa.array(denied)), pa.array(reasons), pa.array(details))


def leaked_weights(documents: pa.RecordBatch, excluded: Excluded) -> Weights:
    """What a shard of training, its documents in order, loses to validation.

    The weight of excluded documents is lost already.
    """
    _, first = _copies(documents)
    marks = _marks(documents)
    leaked = documents.filter(pa.array(~marks & marks[first]))
    leaked = leaked.filter(pa.array(excluded.find(leaked.column("key")) < 0))
    where = partitions(np.asarray(leaked.column("hash")), MAX_PARTITION_BITS)
    distinct, inverse = np.unique(where, return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, inverse, np.asarray(leaked.column("weight")))
    return tuple(zip(distinct.tolist(), sums.tolist(), strict=True))


def drop_excluded(
    documents: pa.RecordBatch, excluded: Excluded
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The documents that no look at the whole corpus excluded, and the others as rejects."""
    found = excluded.find(documents.column("key"))
    rows = excluded.rows.take(pa.array(found[found >= 0]))
    denied = documents.filter(pa.array(found >= 0))
    kept = documents.filter(pa.array(found < 0))
    return kept, _rejects(denied, rows.column("reason"), rows.column("detail"))


def _copies(
    documents: pa.RecordBatch,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which documents have the key of the one before, and the first one with the key of each."""
    halves = key_halves(documents.column("key"))
    again = np.zeros(documents.num_rows, np.bool_)
    again[1:] = (halves[1:] == halves[:-1]).all(axis=1)
    return again, np.flatnonzero(~again)[np.cumsum(~again) - 1]


def _marks(documents: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    if MARK not in documents.schema.names:
        return np.zeros(documents.num_rows, np.bool_)
    return np.asarray(documents.column(MARK).to_numpy(zero_copy_only=False), np.bool_)


def _ranks(sources: pa.Array) -> npt.NDArray[np.int64]:
    """Each source's place in the sorted list of sources."""
    encoded = sources.dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), object)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(names, kind="stable")] = np.arange(len(names))
    ranks: npt.NDArray[np.int64] = rank[np.asarray(encoded.indices)]
    return ranks


def _rejects(denied: pa.RecordBatch, reasons: pa.Array, details: pa.Array) -> pa.RecordBatch:
    rows = denied.num_rows
    columns = [
        pa.array([STAGE] * rows, pa.string()),
        reasons.cast(pa.string()),  # of no rows it is null
        details.cast(pa.string()),
        denied.column("source"),
        denied.column("position"),
        denied.column("bytes"),
        pa.array([""] * rows, pa.string()),  # the text is gone behind the encoder
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTS)
