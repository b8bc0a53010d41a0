"""JSON Lines: one object per line, the text in one of its columns; plain, .gz or .zst."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.batch import Batch
from pipeline.byte_range import DamagedFileError, Line, compressible, cut_bytes, lines
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.meter import Meter
from pipeline.records import BadRecord, Record, gather, too_large

KIND = "text"
EXTENSIONS = compressible(".jsonl", ".json", ".ndjson")

_BOM = b"\xef\xbb\xbf"
_COLUMNS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of JSON Lines."""

    column: str = "text"
    """Column that holds the text of a document."""


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """Byte ranges; a compressed file is one."""
    return cut_bytes(file, config.portion_mib << 20)


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The records whose line begins in the portion; `position` is the byte offset of the line."""
    meter = Meter(portion.bytes)
    found = lines(
        portion.file,
        start=portion.start,
        stop=portion.stop,
        max_bytes=config.max_record_mib << 20,
        meter=meter,
    )
    return gather(portion, _records(found, config), meter)


def _records(found: Iterator[Line], config: Config) -> Iterator[Record | BadRecord]:
    max_bytes = config.max_record_mib << 20
    try:
        for line in found:
            if line.bytes > max_bytes:
                yield too_large(line, what="line", max_bytes=max_bytes)
            elif (record := _parse(line, config.column)) is not None:
                yield record
    except DamagedFileError as error:
        position, head, size = error.line
        yield BadRecord("truncated_file", position, str(error), size + error.unread, head)


def parse_object(line: Line) -> dict[str, Any] | BadRecord | None:
    """`{"text": "a"}` -> its columns; a blank line -> None; anything else -> a bad record."""
    try:
        value = orjson.loads(line.head)
    except orjson.JSONDecodeError as error:
        return _not_json(line, error)
    if type(value) is not dict:
        return _bad("invalid_json", line, f"the line holds no object but {_kind(value)}")
    return value


def _parse(line: Line, column: str) -> Record | BadRecord | None:
    value = parse_object(line)
    if value is None or isinstance(value, BadRecord):
        return value
    found = value.get(column, _parse)  # no value of JSON is a function
    if type(found) is str:
        return Record(line.position, found.encode())
    if found is _parse:
        columns = ", ".join(list(value)[:_COLUMNS_SHOWN])
        return _bad("missing_column", line, f"no column '{column}'; there are: {columns}")
    return _bad("not_text", line, f"column '{column}' holds {_kind(found)}")


def _not_json(line: Line, error: orjson.JSONDecodeError) -> dict[str, Any] | BadRecord | None:
    text = line.head
    if not text.strip():
        return None
    if line.position == 0 and text.startswith(_BOM):
        return parse_object(Line(0, text[len(_BOM) :], line.bytes - len(_BOM)))
    try:
        text.decode()
    except UnicodeDecodeError as invalid:
        offset = line.position + invalid.start
        return _bad("invalid_utf8", line, f"{invalid.reason} at byte {offset} of the file")
    return _bad("invalid_json", line, str(error))


def _bad(reason: str, line: Line, detail: str) -> BadRecord:
    return BadRecord(reason, line.position, detail, line.bytes, line.head)


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
}


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), "a number")
