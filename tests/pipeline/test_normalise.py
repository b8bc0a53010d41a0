"""Normalisation against a reference that looks at one character at a time."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch import DOCUMENTS, REJECTS, Batch, Count
from pipeline.normalise import NormaliseText, normalise


def _batch(*texts: bytes) -> Batch:
    source = pa.array(["corpus.txt"] * len(texts), pa.string()).dictionary_encode()
    positions = pa.array(range(100, 100 + len(texts)), pa.int64())
    columns = [source, positions, pa.array(texts, pa.large_binary())]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    return Batch(7, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), last=True)


def _texts(batch: Batch) -> list[str]:
    return [text.decode() for text in batch.documents.column("text").to_pylist()]


def _rejects(batch: Batch) -> list[tuple[str, str, str, int]]:
    return [
        (row["stage"], row["reason"], row["detail"], row["position"])
        for row in batch.rejects.to_pylist()
    ]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\ufeffmark", "mark"),
        ("in\ufeffside", "inside"),
        ("a\r\nb\rc\n\rd", "a\nb\nc\n\nd"),
        ("page\fpage\vline\u0085line", "page\npage\nline\nline"),
        ("a\x00b\x1bc\x7fd\x9fe", "abcde"),
        ("£\u00a0°", "£\u00a0°"),  # C2 xx, but no controls
        ("می\u200cخواهم \u200b👨\u200d👩", "می\u200cخواهم \u200b👨\u200d👩"),
        ("one\u2028two", "one\u2028two"),
        ("e\u0301", "é"),
        ("e\x01\u0301", "é"),
        ("\ufb01 ①", "\ufb01 ①"),
        ("\U0001f600ｗ", "\U0001f600ｗ"),
    ],
)
def test_clean_text(raw, clean):
    result = normalise(_batch(b"before", raw.encode(), "äfter".encode()))
    assert _texts(result) == ["before", clean, "äfter"]


@pytest.mark.parametrize(
    ("unicode", "clean"),
    [
        ("NFC", "\ufb01é\u212b".replace("\u212b", "Å")),
        ("NFKC", "fiéÅ"),
        ("none", "\ufb01e\u0301\u212b"),
    ],
)
def test_unicode_form_is_a_choice(unicode, clean):
    assert _texts(normalise(_batch("\ufb01e\u0301\u212b".encode()), unicode=unicode)) == [clean]


def test_keeping_control_characters_is_a_choice():
    batch = _batch(b"a\x00b\x1bc\r\nd\xc2\x9f\xef\xbb\xbf")
    assert _texts(normalise(batch, control_characters="keep")) == ["a\x00b\x1bc\nd\x9f"]
    assert _texts(normalise(batch)) == ["abc\nd"]


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"ab\xffc", "invalid start byte at byte 2 of the text"),
        (b"\xc3", "unexpected end of data at byte 0 of the text"),
        (b"a\xed\xa0\x80", "invalid continuation byte at byte 1 of the text"),
        (b"\x00\xc0\x80", "invalid start byte at byte 1 of the text"),
    ],
)
def test_invalid_utf8_is_a_reject_with_the_place(raw, detail):
    # The neighbours would complete the broken characters if documents ran together.
    result = normalise(_batch(b"x", raw, b"\x80", b"y"))
    assert _texts(result) == ["x", "y"]
    assert _rejects(result) == [
        ("normalise", "invalid_utf8", detail, 101),
        ("normalise", "invalid_utf8", "invalid start byte at byte 0 of the text", 102),
    ]
    assert result.rejects.column("bytes").to_pylist() == [len(raw), 1]


@pytest.mark.parametrize("raw", ["", " \n\t", "\ufeff", "\x00\x01", "\u3000\u00a0", " " * 200])
def test_nothing_but_white_space_is_a_reject(raw):
    result = normalise(_batch(b"x", raw.encode(), b""))
    assert _texts(result) == ["x"]
    assert _rejects(result) == [("normalise", "empty", "", 101), ("normalise", "empty", "", 102)]


def test_text_behind_much_white_space_is_kept():
    texts = ["\u3000" * 50 + "x", " " * 500 + "ä", "\n" * 63 + "日本"]
    assert _texts(normalise(_batch(*(text.encode() for text in texts)))) == texts


def test_counts_raw_bytes_in_and_clean_bytes_out():
    result = normalise(_batch(b"a\r\nb", b"\xff\xff", b"\xef\xbb\xbf", b"c"))
    assert result.counts == (Count("normalise", 4, 10, 2, 4),)
    assert (result.portion, result.last) == (7, True)


def test_batch_without_documents():
    result = normalise(_batch())
    assert (_texts(result), _rejects(result)) == ([], [])
    assert result.counts == (Count("normalise", 0, 0, 0, 0),)


def test_slice_of_a_larger_batch():
    whole = _batch(b"\xff", b"a\rb", b"c", b"\xff")
    part = Batch(0, whole.documents.slice(1, 2), whole.rejects, (), last=False)
    assert _texts(normalise(part)) == ["a\nb", "c"]
    assert normalise(part).counts == (Count("normalise", 2, 4, 2, 4),)


def test_stage_by_piping_a_list():
    batches = [_batch(b"a\rb", b"\xff"), _batch(b"")]
    found = batches | NormaliseText(unicode="NFC", control_characters="drop")
    assert sorted((_texts(batch), _rejects(batch)) for batch in found) == [
        ([], [("normalise", "empty", "", 100)]),
        (
            ["a\nb"],
            [("normalise", "invalid_utf8", "invalid start byte at byte 0 of the text", 101)],
        ),
    ]


SPECIAL = st.sampled_from(
    "\r\n\t\0\x1f\x7f\x80\x85\x9f\xa0Â\ufeff\ufffe\u0301\u212b\u0344ä한각日ﬁ\u2028"
)
TEXT = st.lists(st.one_of(SPECIAL, st.characters(codec="utf-8"), st.just("ab "))).map("".join)
RAW = st.one_of(TEXT.map(str.encode), st.binary(max_size=8), st.just(b"plain"))


@given(st.lists(RAW, max_size=8), st.sampled_from(["NFC", "NFKC", "none"]))
def test_equals_the_reference(raw, unicode):
    result = normalise(_batch(*raw), unicode=unicode)
    expected = [_reference(text, unicode) for text in raw]
    assert _texts(result) == [text for text in expected if text and text.strip()]
    assert [reject[1] for reject in _rejects(result)] == [
        "invalid_utf8" if text is None else "empty"
        for text in expected
        if text is None or not text.strip()
    ]
    again = normalise(result, unicode=unicode)
    assert again.documents.equals(result.documents)


def _reference(raw: bytes, unicode: str) -> str | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    text = "".join(char for char in text if char != "\ufeff").replace("\r\n", "\n")
    text = "".join("\n" if char in "\r\v\f\x85" else char for char in text)
    text = "".join(char for char in text if char in "\t\n" or unicodedata.category(char) != "Cc")
    return text if unicode == "none" else unicodedata.normalize(unicode, text)
