"""Plain text: a file is one document, or each block between blank lines; also .gz and .zst."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from pipeline.batch import Batch
from pipeline.byte_range import (
    Bounded,
    DamagedFileError,
    Line,
    blocks,
    compressible,
    cut_bytes,
    is_compressed,
    lines,
    open_corpus_file,
)
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.meter import Meter
from pipeline.records import BadRecord, Record, gather, too_large

KIND = "text"
EXTENSIONS = compressible(".txt")

_LOOK_BACK_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of plain text."""

    documents: Literal["file", "blocks"] = "file"
    """What a document is: a whole file, or a block of lines between blank ones."""


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """Byte ranges where blocks are the documents; else, and if compressed, the whole file."""
    if config.documents == "file":
        return [(0, file.bytes, file.bytes)]
    return cut_bytes(file, config.portion_mib << 20)


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The file, or the blocks whose first byte lies in the portion; `position` is the byte offset.

    A blank line holds nothing but white space. A block is handed on without the line feed behind
    it.
    """
    max_bytes, meter = config.max_record_mib << 20, Meter(portion.bytes)
    if config.documents == "file":
        return gather(portion, _whole_file(portion.file, max_bytes, meter), meter)
    return gather(portion, _blocks(portion, max_bytes, meter), meter)


def _whole_file(file: CorpusFile, max_bytes: int, meter: Meter) -> Iterator[Record | BadRecord]:
    text = Bounded(0, max_bytes)
    try:
        with closing(open_corpus_file(file)) as opened:
            for part in blocks(opened, file, meter):
                text.add(part)
    except DamagedFileError as error:
        yield BadRecord("truncated_file", 0, str(error), file.bytes, text.line().head)
    else:
        if text.bytes:
            yield _record("file", text.line(), max_bytes)


def _blocks(portion: Portion, max_bytes: int, meter: Meter) -> Iterator[Record | BadRecord]:
    file, start, stop = portion.file, portion.start, portion.stop
    if is_compressed(file):
        start, stop = 0, sys.maxsize
    # Until the first blank line the lines are of a block of the portion before.
    inside_other = start > 0
    block = None
    begin = _blank_line_start(file, start)
    try:
        for line in lines(file, start=begin, stop=None, max_bytes=max_bytes, meter=meter):
            if not line.head or line.head.isspace():
                inside_other = False
                if block is not None:
                    yield _record("block", block.line(), max_bytes)
                    block = None
            elif block is not None:
                block.add(b"\n" + line.head, length=line.bytes + 1)
            elif line.position >= stop:
                return
            elif not inside_other:
                block = Bounded(line.position, max_bytes)
                block.add(line.head, length=line.bytes)
    except DamagedFileError as error:
        yield _broken(block, error)
        return
    if block is not None:
        yield _record("block", block.line(), max_bytes)


def _record(what: str, text: Line, max_bytes: int) -> Record | BadRecord:
    if text.bytes > max_bytes:
        return too_large(text, what=what, max_bytes=max_bytes)
    return Record(text.position, text.head)


def _broken(block: Bounded | None, error: DamagedFileError) -> BadRecord:
    """The block, or the line, in which a damaged stream breaks off."""
    rest = error.line
    if block is not None:
        block.add(b"\n" + rest.head, length=rest.bytes + 1)
        rest = block.line()
    size = rest.bytes + error.unread
    return BadRecord("truncated_file", rest.position, str(error), size, rest.head)


def _blank_line_start(file: CorpusFile, start: int) -> int:
    """Where the line of the byte before `start` begins, if it is blank up to `start`; else `start`.

    A range reads that line too: whether it is blank decides whether a block begins behind it.
    """
    if not start:
        return 0
    with closing(open_corpus_file(file)) as opened:
        begin = stop = start
        while begin:
            begin = max(0, stop - _LOOK_BACK_BYTES)
            opened.seek(begin)
            before, feed, blank = _last_line(opened.read(stop - begin), ends=stop == start)
            if blank.strip():
                return start
            if feed:
                return begin + len(before) + 1
            stop = begin
    return 0


def _last_line(text: bytes, *, ends: bool) -> tuple[bytes, bytes, bytes]:
    """Split before the last line; a line feed at the very end belongs to it where `ends`."""
    line = text[:-1] if ends and text.endswith(b"\n") else text
    before, feed, _ = line.rpartition(b"\n")
    return before, feed, text[len(before) + len(feed) :]
