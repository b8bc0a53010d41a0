"""Parquet: one document per row, the text in a string or binary column; cut at row groups."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.batch import EXCERPT_BYTES, Batch
from pipeline.byte_range import Line, open_corpus_file
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.meter import Meter
from pipeline.records import BATCH_BYTES, BadRecord, gather, read_batch, too_large

KIND = "text"
EXTENSIONS = (".parquet", ".pq")

_ROWS_AT_A_TIME = 1024
"""Rows decoded at a time: 4 MB where a document has 4 KB; larger ones are cut into more batches."""


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of Parquet files."""

    column: str = "text"
    """Column that holds the text of a document."""


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """Runs of row groups of about `portion_mib` of the column as stored, as (start, stop, bytes).

    A file that cannot be read is one portion, and becomes one reject when it is read.

    Raises:
        ValueError: no such column, or its type is neither string nor binary.
    """
    try:
        with closing(open_corpus_file(file)) as opened, pq.ParquetFile(opened) as parquet:
            index = _column_index(parquet, file, config.column)
            groups = _all_groups(parquet)
            sizes = [group.column(index).total_compressed_size for group in groups]
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        return [(0, 0, file.bytes)]
    return _runs(sizes, config.portion_mib << 20)


def cut_groups(
    file: CorpusFile, columns: Sequence[str], portion_bytes: int
) -> list[tuple[int, int, int]]:
    """The same by all columns; the named ones have to be there.

    Raises:
        ValueError: no such column.
    """
    try:
        with closing(open_corpus_file(file)) as opened, pq.ParquetFile(opened) as parquet:
            check_columns(parquet.schema_arrow.names, columns, file)
            sizes = [_stored_bytes(group) for group in _all_groups(parquet)]
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        return [(0, 0, file.bytes)]
    return _runs(sizes, portion_bytes)


def check_columns(names: Sequence[str], columns: Sequence[str], file: CorpusFile) -> None:
    """Check that a file has columns.

    Raises:
        ValueError: it lacks one.
    """
    absent = next((column for column in columns if column not in names), None)
    if absent is not None:
        raise ValueError(f"{file.source}: no column '{absent}'; there are: {', '.join(names)}")


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The rows of the portion's row groups; `position` is the number of the row in the file.

    A row group that cannot be decoded is one reject, as is a file that cannot be opened.
    """
    file, meter = portion.file, Meter(portion.bytes)
    bad: list[BadRecord] = []
    try:
        with closing(open_corpus_file(file)) as opened, pq.ParquetFile(opened) as parquet:
            _column_index(parquet, file, config.column)
            groups = map(parquet.metadata.row_group, range(portion.start, portion.stop))
            row_bytes = portion.bytes / max(1, sum(group.num_rows for group in groups))
            for batch in _row_groups(portion, parquet, config):
                meter.add(batch.counts[0].records_in * row_bytes)
                yield replace(batch, read_bytes=meter.take())
    except (pa.ArrowException, OSError) as error:
        if not is_damage(error):
            raise
        bad = [unreadable(0, error, file.bytes)]
    yield from gather(portion, bad, meter)


def is_damage(error: Exception) -> bool:
    """Whether Arrow complains of the content; a disk or a store that fails is no bad data."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and not error.errno)


def unreadable(row: int, error: Exception, size: int) -> BadRecord:
    """The reject of what cannot be read from a row on."""
    return BadRecord("unreadable_file", row, " ".join(str(error).split()), size, b"")


def _column_index(parquet: pq.ParquetFile, file: CorpusFile, column: str) -> int:
    schema = parquet.schema_arrow
    check_columns(schema.names, [column], file)
    kind = _value_type(schema.field(column).type)
    if not (pa.types.is_large_binary(kind) or pa.types.is_large_string(kind)):
        raise ValueError(
            f"{file.source}: column '{column}' holds {schema.field(column).type}, "
            "not a string or binary"
        )
    names = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
    return names.index(column)


def _all_groups(parquet: pq.ParquetFile) -> list[Any]:
    return [parquet.metadata.row_group(at) for at in range(parquet.metadata.num_row_groups)]


def _value_type(kind: Any) -> Any:
    """The type as which a column is read: the large form, and without a dictionary."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def _runs(sizes: list[int], portion_bytes: int) -> list[tuple[int, int, int]]:
    """[40, 20, 40] with 64 -> [(0, 2, 60), (2, 3, 40)]: a run ends before it is too large."""
    runs: list[tuple[int, int, int]] = []
    for group, size in enumerate(sizes):
        if runs and runs[-1][2] + size <= portion_bytes:
            runs[-1] = (runs[-1][0], group + 1, runs[-1][2] + size)
        else:
            runs.append((group, group + 1, size))
    return runs or [(0, 0, 0)]


def _row_groups(portion: Portion, parquet: pq.ParquetFile, config: Config) -> Iterator[Batch]:
    metadata = parquet.metadata
    row = sum(metadata.row_group(group).num_rows for group in range(portion.start))
    for group in range(portion.start, portion.stop):
        done = 0
        try:
            for batch, rows in _batches(portion, parquet, config, group=group, row=row):
                yield batch
                done = rows
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            size = _stored_bytes(metadata.row_group(group))
            texts = pa.array([], pa.large_binary())
            bad = [unreadable(row + done, error, size)]
            none = np.empty(0, np.int64)
            yield read_batch(portion, positions=none, texts=texts, bad=bad)
        row += metadata.row_group(group).num_rows


def _batches(
    portion: Portion, parquet: pq.ParquetFile, config: Config, *, group: int, row: int
) -> Iterator[tuple[Batch, int]]:
    """The batches of a row group, and how many of its rows are done with each."""
    done = 0
    columns = [config.column]
    for rows in parquet.iter_batches(_ROWS_AT_A_TIME, [group], columns, use_threads=False):
        column = rows.column(0)
        texts = column.cast(_value_type(column.type)).cast(pa.large_binary())
        for batch in _slices(portion, row + done, texts, config.max_record_mib << 20):
            yield batch, done + len(texts)
        done += len(texts)


def _stored_bytes(group: Any) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def _slices(portion: Portion, row: int, texts: pa.Array, max_bytes: int) -> Iterator[Batch]:
    """Batches of about 4 MB from the rows that were decoded together."""
    sizes = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    groups = (np.cumsum(sizes) - sizes) // BATCH_BYTES
    for group in np.unique(groups):
        first, stop = np.searchsorted(groups, [group, group + 1])
        piece, size = texts[first:stop], sizes[first:stop]
        bad = [
            _bad(row + int(first + index), piece[index], int(size[index]), max_bytes)
            for index in np.flatnonzero(_is_null(piece) | (size > max_bytes)).tolist()
        ]
        good = ~_is_null(piece) & (size <= max_bytes)
        yield read_batch(
            portion,
            positions=row + first + np.flatnonzero(good),
            texts=piece.filter(pa.array(good)),
            bad=bad,
        )


def _is_null(texts: pa.Array) -> Any:
    return texts.is_null().to_numpy(zero_copy_only=False)


def _bad(row: int, value: Any, size: int, max_bytes: int) -> BadRecord:
    if not value.is_valid:
        return BadRecord("missing_value", row, "null", 0, b"")
    head = bytes(value.as_buffer()[:EXCERPT_BYTES])
    return too_large(Line(row, head, size), what="value", max_bytes=max_bytes)
