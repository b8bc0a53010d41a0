"""The kernel against a reference by regular expressions, on made and on real text."""

import re
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.word_statistics import COUNTS, MAX_STOP_WORDS, _count_all, word_statistics

DATA = Path(__file__).parents[3] / "shared" / "data"
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def _documents(texts: list[str]) -> pa.RecordBatch:
    column = pa.array([text.encode() for text in texts], pa.large_binary())
    return pa.RecordBatch.from_arrays([column], names=["text"])


def _statistics(texts: list[str], stop_words: tuple[str, ...] = STOP_WORDS) -> list[list[int]]:
    found = word_statistics(_documents(texts), stop_words=stop_words)
    assert tuple(found) == COUNTS
    return [list(row) for row in zip(*(column.tolist() for column in found.values()), strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # tokens, words, characters, alphabetic, hashes, ellipses, lines, bullets, ends, stop words
        ("", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("\n\n", [0, 0, 0, 0, 0, 0, 2, 0, 0, 0]),
        ("the cat", [2, 2, 6, 2, 0, 0, 1, 0, 0, 1]),
        ("The the THE", [3, 3, 9, 3, 0, 0, 1, 0, 0, 1]),
        ("don't well-to-do o\u2019clock", [3, 3, 5 + 10 + 7, 3, 0, 0, 1, 0, 0, 0]),
        ("'to' -be- a--b", [9, 4, 6, 4, 0, 0, 1, 0, 0, 2]),
        ('said."--"No!" ##...?\u2026', [9, 2, 6, 2, 2, 2, 1, 0, 1, 0]),
        ("rock'", [2, 1, 4, 1, 0, 0, 1, 0, 0, 0]),
        ("1984, 3rd", [3, 2, 7, 1, 0, 0, 1, 0, 0, 0]),
        ("# #tag", [3, 1, 3, 1, 2, 0, 1, 0, 0, 0]),
        ("a... b\u2026", [4, 2, 2, 2, 0, 2, 1, 0, 1, 0]),
        (".. .... ......", [5, 0, 0, 0, 0, 3, 1, 0, 1, 0]),
        ("a ....\nb ...  \nc. . .\n", [9, 3, 3, 3, 0, 2, 3, 0, 2, 0]),
        ("- a\n \u2022 b\n\nc - d\n", [7, 4, 4, 4, 0, 0, 4, 2, 0, 0]),
        ("e\u0301te\u0301 \u0917\u0941", [2, 2, 7, 2, 0, 0, 1, 0, 0, 0]),
        ("\u200c\u2060 \U0001d400\U0001f600\U000e0101", [4, 3, 4, 1, 0, 0, 1, 0, 0, 0]),
        ("\u65e5\u672c\u3000\u8a9e\u3002", [3, 2, 3, 2, 0, 0, 1, 0, 0, 0]),
    ],
)
def test_counts(text, expected):
    assert _statistics(["x ...", text, "- x"])[1] == expected


def test_stop_words_are_a_choice():
    words = tuple(f"w{number}" for number in range(MAX_STOP_WORDS - 1)) + ("\u00e4",)
    text = " ".join(words)
    assert _statistics([text, "w0 w0", "\u00e4"], words) == [
        _reference(each, words) for each in (text, "w0 w0", "\u00e4")
    ]
    assert [row[-1] for row in _statistics([text, "w0"], words)] == [MAX_STOP_WORDS, 1]
    assert [row[-1] for row in _statistics([text, "the"], ())] == [0, 0]


def test_documents_that_are_a_slice():
    documents = _documents(["# one", "two ...", "- three"]).slice(1, 1)
    found = word_statistics(documents, stop_words=STOP_WORDS)
    assert [int(column[0]) for column in found.values()] == _reference("two ...", STOP_WORDS)


def test_the_kernel_is_compiled_for_one_type_of_arguments():
    documents = _documents(["# one", "two ...", "- three"])
    empty = _documents([])
    kept = documents.filter(pa.array([True, False, True]))
    for part in (documents, empty, kept, _documents([""]), pa.concat_batches([kept, kept])):
        word_statistics(part, stop_words=STOP_WORDS)
    assert len(_count_all.signatures) == 1


SIGNS = (
    "ab1 \t\n.#-'_\"\u2019\u2022\u2026\u2010"
    "\u0301\u200d\u00e4\u65e5\u3000\U0001d400\U0001f600\U000e0101"
)
TEXT = st.text(st.one_of(st.sampled_from(SIGNS), st.characters(codec="utf-8")), max_size=40)
WORDS = st.sampled_from(
    ["the", "...", "#", '."', "that ", " of ", "\n", " be-", "\u2026\n", "- ", "have'"]
)


@given(st.lists(st.one_of(TEXT, st.lists(WORDS).map("".join)), max_size=5))
def test_equals_the_reference(texts):
    assert _statistics(texts) == [_reference(text, STOP_WORDS) for text in texts]


def _real_texts(name: str) -> list[str]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent: the real corpora are kept beside the project")
    if path.is_dir():
        raw = [file.read_bytes()[:60_000] for file in sorted(path.glob("*.txt"))]
    else:
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if not entry.endswith("/")]
            raw = [archive.read(entry)[:50_000] for entry in names[::7]]
    return [text.decode("utf-8", "replace") for text in raw]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "text/english_novels",
        "multilingual/nltk/udhr2.zip",
        "text/nltk/movie_reviews.zip",
        "text/nltk/webtext.zip",
    ],
)
def test_equals_the_reference_on_real_text(name):
    texts = _real_texts(name)
    assert _statistics(texts) == [_reference(text, STOP_WORDS) for text in texts]


def _characters(*categories: str) -> str:
    """A set of a regular expression: all characters of these categories."""
    codes = [
        code
        for code in range(0x110000)
        if unicodedata.category(chr(code)) in categories
        or unicodedata.category(chr(code))[0] in categories
    ]
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


WORD_SET = _characters("L", "M", "N", "Cf")
WORD = rf"[{WORD_SET}]+(?:['\u2019\-\u2010\u2011][{WORD_SET}]+)*"
RUN = rf"(?:(?!\.\.\.)[^{WORD_SET}\s#\u2026])+"
TOKEN = re.compile(rf"(?P<word>{WORD})|\.\.\.|[\u2026#]|{RUN}")


def _reference(text: str, stop_words: tuple[str, ...]) -> list[int]:
    found = list(TOKEN.finditer(text))
    tokens = [match.group() for match in found]
    words = [match.group() for match in found if match.group("word")]
    lines = text.split("\n")
    lines = lines if lines[-1] else lines[:-1]
    return [
        len(tokens),
        len(words),
        sum(map(len, words)),
        sum(any(char.isalpha() for char in token) for token in tokens),
        tokens.count("#"),
        tokens.count("...") + tokens.count("\u2026"),
        len(lines),
        sum(line.lstrip().startswith(("-", "\u2022")) for line in lines),
        sum(line.rstrip().endswith(("...", "\u2026")) for line in lines),
        len(set(words) & set(stop_words)),
    ]
