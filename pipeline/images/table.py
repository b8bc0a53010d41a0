"""Rows of tables that list images: Parquet, JSON Lines, csv and tsv, as plain Python values.

A row of csv is a line by RFC 4180, so a field in quotes may hold the delimiter, but no line feed
unless that is asked for; of tsv nothing is quoted. What cannot be read is a bad record.
"""

import csv
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.byte_range import (
    COMPRESSIONS,
    Bounded,
    DamagedFileError,
    Line,
    compressible,
    cut_bytes,
    lines,
    open_corpus_file,
)
from pipeline.corpus import CorpusFile, Portion
from pipeline.meter import Meter
from pipeline.readers import parquet
from pipeline.readers.jsonl import parse_object
from pipeline.records import BadRecord, too_large

PARQUET = (".parquet", ".pq")
EXTENSIONS = (*PARQUET, *compressible(".jsonl", ".json", ".ndjson", ".csv", ".tsv"))

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ROWS_AT_A_TIME = 32
"""Rows decoded at a time: a few MB where an image has 100 KB."""
_BOM = b"\xef\xbb\xbf"

csv.field_size_limit(2**31 - 1)  # the limit of records holds; by default it is 128 KiB


class Row(NamedTuple):
    """A row of a table."""

    position: int
    """Byte offset of its line, or number of the row in its file."""
    values: dict[str, Any]
    """By column."""
    bytes: int
    """Of its line; 0 where rows are not stored one by one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How tables are read."""

    header: tuple[str, ...]
    """Names of the columns of csv and tsv without a header line; empty: the first line has them."""
    line_feeds: bool
    """Fields of csv in quotes may hold line feeds; each file is one portion then."""
    max_bytes: int
    """Of a row."""


def cut_table(
    file: CorpusFile, layout: Layout, *, columns: Sequence[str], portion_bytes: int
) -> list[tuple[int, int, int]]:
    """Runs of row groups, or byte ranges, as (start, stop, bytes).

    Raises:
        ValueError: a Parquet or csv file without one of the columns.
    """
    if _ending(file) in PARQUET:
        return parquet.cut_groups(file, columns, portion_bytes)
    if _ending(file) in _DELIMITERS and file.bytes:
        _header(file, layout, columns)
        if layout.line_feeds:
            return [(0, file.bytes, file.bytes)]
    return cut_bytes(file, portion_bytes)


def read_table(
    portion: Portion, layout: Layout, *, columns: Sequence[str], meter: Meter
) -> Iterator[Row | BadRecord]:
    """The rows of a portion; `columns` are those that a row has to have.

    Raises:
        ValueError: see `cut_table`.
    """
    file = portion.file
    if not file.bytes:
        return
    if _ending(file) in PARQUET:
        yield from _parquet_rows(portion, columns, meter)
        return
    try:
        if _ending(file) in _DELIMITERS:
            yield from _csv_rows(portion, layout, columns, meter)
        else:
            yield from _json_rows(portion, layout, columns, meter)
    except DamagedFileError as error:
        position, head, size = error.line
        yield BadRecord("truncated_file", position, str(error), size + error.unread, head)


def read_strings(portion: Portion, layout: Layout, column: str) -> Iterator[str]:
    """The strings of one column alone, or the paths in Hugging Face's structs of bytes and path.

    What is damaged is left out, and bytes are not read.
    """
    if not portion.file.bytes:
        return
    if _ending(portion.file) in PARQUET:
        values: Iterator[Any] = _parquet_strings(portion, column)
    else:
        found = read_table(portion, layout, columns=(column,), meter=Meter(0))
        values = (row.values[column] for row in found if isinstance(row, Row))
    for value in values:
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and path:
            yield path


def _parquet_strings(portion: Portion, column: str) -> Iterator[Any]:
    try:
        with closing(open_corpus_file(portion.file)) as opened, pq.ParquetFile(opened) as table:
            kind = table.schema_arrow.field(column).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return
            leaf = f"{column}.path" if pa.types.is_struct(kind) else column
            groups = list(range(portion.start, portion.stop))
            for batch in table.iter_batches(row_groups=groups, columns=[leaf], use_threads=False):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        if not parquet.is_damage(error):
            raise


def _ending(file: CorpusFile) -> str:
    name = file.url.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return posixpath.splitext(name)[1]


def _parquet_rows(
    portion: Portion, columns: Sequence[str], meter: Meter
) -> Iterator[Row | BadRecord]:
    file, row = portion.file, 0
    try:
        with closing(open_corpus_file(file)) as opened, pq.ParquetFile(opened) as table:
            parquet.check_columns(table.schema_arrow.names, columns, file)
            sizes = [table.metadata.row_group(at) for at in range(table.metadata.num_row_groups)]
            row = sum(group.num_rows for group in sizes[: portion.start])
            groups = range(portion.start, portion.stop)
            num_rows = sum(sizes[group].num_rows for group in groups)
            for batch in table.iter_batches(_ROWS_AT_A_TIME, list(groups), use_threads=False):
                meter.add(portion.bytes * batch.num_rows / max(num_rows, 1))
                for values in batch.to_pylist():
                    yield Row(row, values, 0)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        if not parquet.is_damage(error):
            raise
        yield parquet.unreadable(row, error, portion.bytes)


def _json_rows(
    portion: Portion, layout: Layout, columns: Sequence[str], meter: Meter
) -> Iterator[Row | BadRecord]:
    for line in _lines(portion, layout, meter):
        if line.bytes > layout.max_bytes:
            yield too_large(line, what="line", max_bytes=layout.max_bytes)
            continue
        values = parse_object(line)
        if isinstance(values, BadRecord):
            yield values
        elif values is not None:
            absent = next((name for name in columns if name not in values), None)
            row = Row(line.position, values, line.bytes)
            yield row if absent is None else _absent(line, absent, values)


def _absent(line: Line, column: str, values: dict[str, Any]) -> BadRecord:
    detail = f"no column '{column}'; there are: {', '.join(list(values)[:20])}"
    return BadRecord("missing_column", line.position, detail, line.bytes, line.head)


def _lines(portion: Portion, layout: Layout, meter: Meter) -> Iterator[Line]:
    start, stop = portion.start, portion.stop
    return lines(portion.file, start=start, stop=stop, max_bytes=layout.max_bytes, meter=meter)


def _csv_rows(
    portion: Portion, layout: Layout, columns: Sequence[str], meter: Meter
) -> Iterator[Row | BadRecord]:
    names = _header(portion.file, layout, columns)
    found = _lines(portion, layout, meter)
    delimiter = _DELIMITERS[_ending(portion.file)]
    joins = delimiter == "," and layout.line_feeds
    for line in _joined(found, layout.max_bytes) if joins else found:
        text = line.head.strip(b"\r")
        if not text.strip() or (line.position == 0 and not layout.header):
            continue
        if line.bytes > layout.max_bytes:
            yield too_large(line, what="row", max_bytes=layout.max_bytes)
            continue
        fields = _fields(line, delimiter)
        if isinstance(fields, list) and len(fields) != len(names):
            fields = _not_csv(line, f"{len(fields)} fields, the table has {len(names)} columns")
        if isinstance(fields, BadRecord):
            yield fields
        else:
            yield Row(line.position, dict(zip(names, fields, strict=True)), line.bytes)


def _joined(found: Iterator[Line], max_bytes: int) -> Iterator[Line]:
    """Lines until their quotes are even: a row whose quoted field holds line feeds is one."""
    held: Bounded | None = None
    quotes = 0
    for line in found:
        if held is None:
            held = Bounded(line.position, max_bytes)
            held.add(line.head, length=line.bytes)
        else:
            held.add(b"\n" + line.head, length=line.bytes + 1)
        quotes += line.head.count(b'"')
        if quotes % 2 == 0:
            yield held.line()
            held, quotes = None, 0
    if held is not None:
        yield held.line()


def _fields(line: Line, delimiter: str) -> list[str] | BadRecord:
    """`a,"b, c"` -> ["a", "b, c"]."""
    head = line.head.removeprefix(_BOM) if line.position == 0 else line.head
    try:
        text = head.decode().strip("\r")
        if delimiter == "\t":
            return text.split(delimiter)
        if text.count('"') % 2:
            return _not_csv(line, "a quote that the line does not close; see corpus.line_feeds")
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except UnicodeDecodeError as error:
        detail = f"{error.reason} at byte {line.position + error.start} of the file"
        return BadRecord("invalid_utf8", line.position, detail, line.bytes, line.head)
    except csv.Error as error:
        return _not_csv(line, str(error))


def _not_csv(line: Line, detail: str) -> BadRecord:
    return BadRecord("invalid_csv", line.position, detail, line.bytes, line.head)


def _header(file: CorpusFile, layout: Layout, columns: Sequence[str]) -> tuple[str, ...]:
    """The names of the columns of a csv or tsv file."""
    names = layout.header
    if not names:
        try:
            first = next(lines(file, start=0, stop=1, max_bytes=layout.max_bytes), Line(0, b"", 0))
        except DamagedFileError as error:
            first = error.line
        fields = _fields(first, _DELIMITERS[_ending(file)])
        if isinstance(fields, BadRecord):
            raise ValueError(f"{file.source}: the header is no line of csv: {fields.detail}")
        names = tuple(fields)
    if len(set(names)) < len(names):
        raise ValueError(f"{file.source}: two columns of the same name: {', '.join(names)}")
    parquet.check_columns(names, columns, file)
    return names
