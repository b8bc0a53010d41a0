"""Counts of tokens, words and lines of each document: one pass over the UTF-8 bytes.

numba, since regular expressions of polars need a pass for each count: measured on 45 MB of novels,
one pass of a single count takes about as long as this kernel takes for all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import text_buffers
from pipeline.numba_cache import compiled
from pipeline.word_classes import JOINER, NUM_TAGS, PLANES, SPACE, SYMBOL, TAGS, WORD, class_table

COUNTS = (
    "tokens",
    "words",
    "word_characters",
    "alphabetic_tokens",
    "hashes",
    "ellipses",
    "lines",
    "bullet_lines",
    "ellipsis_lines",
    "stop_words",
)
(
    _TOKENS,
    _WORDS,
    _WORD_CHARACTERS,
    _ALPHABETIC,
    _HASHES,
    _ELLIPSES,
    _LINES,
    _BULLETS,
    _ELLIPSIS_LINES,
    _STOP_WORDS,
) = range(len(COUNTS))

MAX_STOP_WORDS = 63  # those seen are bits of an int64

_FEED, _HASH, _DASH, _DOT, _BULLET, _ELLIPSIS = (ord(sign) for sign in "\n#-.\u2022\u2026")


def word_statistics(
    documents: pa.RecordBatch, *, stop_words: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """The `COUNTS` of each document; the text is valid UTF-8.

    A **word** is a run of word characters: letters, marks, numbers and format characters (Unicode
    categories L, M, N, Cf), with single apostrophes or hyphens (' \u2019 - and U+2010, U+2011)
    inside. A **token** is a word, or `...`, `\u2026` or `#`, or a run of other characters that are
    not white space: `--` and `."` are one, so that the alphabetic share of 67 novels is that of a
    word tokenizer (0.81 to 0.88; with a token for each character three fell below Gopher's 0.8).

    - `words`, `word_characters`: words, and the characters in them with the joiners.
    - `alphabetic_tokens`: words with a letter.
    - `hashes`: tokens `#`; `ellipses`: tokens `...` and `\u2026`.
    - `lines`: pieces between line feeds, blank ones too, but not an empty one at the end.
    - `bullet_lines`: lines whose first character other than white space is `\u2022` or `-`.
    - `ellipsis_lines`: lines that end, but for white space, in `...` or `\u2026`.
    - `stop_words`: how many of the given words occur, as words in this very case.
    """
    assert len(stop_words) <= MAX_STOP_WORDS
    offsets, values = text_buffers(documents)
    encoded = [word.encode() for word in stop_words]
    ends = np.cumsum([0, *map(len, encoded)])
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    counts = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    _count_all(values, offsets, class_table(), joined, ends, counts)
    return {name: counts[:, index] for index, name in enumerate(COUNTS)}


@compiled
def _count_all(
    text: Any, offsets: Any, classes: Any, stop_bytes: Any, stop_ends: Any, counts: Any
) -> None:
    for row in range(len(offsets) - 1):
        bounds = offsets[row], offsets[row + 1]
        _count_tokens(text, bounds, classes, stop_bytes, stop_ends, counts[row])
        _count_lines(text, bounds, classes, counts[row])


@compiled
def _count_tokens(
    text: Any, bounds: Any, classes: Any, stop_bytes: Any, stop_ends: Any, counts: Any
) -> None:
    place, end = bounds
    tokens = words = word_characters = alphabetic = seen = 0
    while place < end:
        code, behind = _character(text, place)
        kind = _class_of(code, classes)
        if kind >= WORD:
            start = place
            place, characters, has_letter = _word(text, place, end, classes)
            words += 1
            word_characters += characters
            alphabetic += has_letter
            seen |= _stop_word(text, start, place, stop_bytes, stop_ends)
            continue
        if kind != SPACE:
            tokens += 1
            counts[_HASHES] += code == _HASH
            ellipsis_end = _behind_ellipsis(text, place, end)
            counts[_ELLIPSES] += ellipsis_end > place
            if ellipsis_end > place:
                behind = ellipsis_end
            elif code != _HASH:
                behind = _behind_run(text, behind, end, classes)
        place = behind
    counts[_TOKENS] = tokens + words
    counts[_WORDS] = words
    counts[_WORD_CHARACTERS] = word_characters
    counts[_ALPHABETIC] = alphabetic
    while seen:
        counts[_STOP_WORDS] += seen & 1
        seen >>= 1


@compiled
def _word(text: Any, place: Any, end: Any, classes: Any) -> Any:
    """Behind the word at `place`, its characters, and whether one of them is a letter."""
    characters, has_letter = 0, False
    while place < end:
        code, behind = _character(text, place)
        kind = _class_of(code, classes)
        if kind == JOINER and behind < end:
            code, behind = _character(text, behind)
            kind = _class_of(code, classes)
            characters += kind >= WORD
        if kind < WORD:
            break
        has_letter |= kind > WORD
        characters += 1
        place = behind
    return place, characters, has_letter


@compiled
def _behind_run(text: Any, place: Any, end: Any, classes: Any) -> Any:
    """Behind the symbols that go on at `place`: up to a word, white space, `#` or an ellipsis."""
    while place < end:
        code, behind = _character(text, place)
        kind = _class_of(code, classes)
        if kind >= WORD or kind == SPACE or code == _HASH:
            break
        if _behind_ellipsis(text, place, end) > place:
            break
        place = behind
    return place


@compiled
def _behind_ellipsis(text: Any, place: Any, end: Any) -> Any:
    """Behind the `...` or `\u2026` at `place`; `place` where there is none."""
    code, behind = _character(text, place)
    if code == _ELLIPSIS:
        return behind
    return place + 3 if _is_ellipsis(text, place, end) else place


@compiled
def _stop_word(text: Any, start: Any, stop: Any, stop_bytes: Any, stop_ends: Any) -> Any:
    """The bit of the stop word that stands from `start` to `stop`, or 0."""
    size = stop - start
    for index in range(len(stop_ends) - 1):
        first = stop_ends[index]
        if stop_ends[index + 1] - first != size:
            continue
        same = 0
        while same < size and stop_bytes[first + same] == text[start + same]:
            same += 1
        if same == size:
            return 1 << index
    return 0


@compiled
def _count_lines(text: Any, bounds: Any, classes: Any, counts: Any) -> None:
    """Looks at both ends of each line alone."""
    start, end = bounds
    while start < end:
        stop = start
        while stop < end and text[stop] != _FEED:
            stop += 1
        counts[_LINES] += 1
        first = start
        while first < stop:
            code, behind = _character(text, first)
            if _class_of(code, classes) != SPACE:
                counts[_BULLETS] += code in (_DASH, _BULLET)
                break
            first = behind
        counts[_ELLIPSIS_LINES] += _ends_in_ellipsis(text, first, stop, classes)
        start = stop + 1


@compiled
def _ends_in_ellipsis(text: Any, first: Any, stop: Any, classes: Any) -> Any:
    place = stop
    while place > first:
        behind = place
        place -= 1
        while text[place] & 0xC0 == 0x80:  # inside a character
            place -= 1
        code, _ = _character(text, place)
        if _class_of(code, classes) != SPACE:
            dots = behind - 3 >= first and _is_ellipsis(text, behind - 3, stop)
            return code == _ELLIPSIS or dots
    return False


@compiled
def _is_ellipsis(text: Any, place: Any, end: Any) -> Any:
    if place + 3 > end:
        return False
    return text[place] == _DOT and text[place + 1] == _DOT and text[place + 2] == _DOT


@compiled
def _class_of(code: Any, classes: Any) -> Any:
    if code < PLANES:
        return classes[code]
    if TAGS <= code < TAGS + NUM_TAGS:
        return classes[code - TAGS + PLANES]
    return SYMBOL


@compiled
def _character(text: Any, place: Any) -> Any:
    """The code point at a place of valid UTF-8, and the place behind it."""
    lead = np.int64(text[place])
    if lead < 0x80:
        return lead, place + 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | text[place + 1] & 0x3F, place + 2
    code = (lead & 0x0F) << 12 | (text[place + 1] & 0x3F) << 6 | text[place + 2] & 0x3F
    if lead < 0xF0:
        return code, place + 3
    return (code & 0x7FFF) << 6 | text[place + 3] & 0x3F, place + 4
