import functools
import logging
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from pipeline import encoder as module
from pipeline.encoder import PROBES, check_encoder, load_encoder, token_dtype
from pipeline.tokenizer import characters_tokenizer, parse_tokenizer, train_tokenizer

END = "<|endoftext|>"
TEXTS = ["the cat sat on the mat, the cat sat", "naïve café — the mat\n\nthe end", *PROBES]
BPE = train_tokenizer(TEXTS * 3, vocab_size=400, end_of_document=END)
CHARACTERS = characters_tokenizer("".join(TEXTS) + END, end_of_document=END)
CORPORA = Path(__file__).parents[3] / "shared" / "data"


parsed = functools.cache(parse_tokenizer)


def strings(texts):
    return pa.array(texts, pa.large_string())


def reference(text, texts, end):
    tokenizer = parsed(text)
    return [[*tokenizer.encode(t, add_special_tokens=False).ids, end] for t in texts]


def documents(encoder, texts):
    tokens, offsets = encoder.encode_batch(texts)
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    return [tokens[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("text", [BPE, CHARACTERS])
def test_tokens_are_those_of_hugging_face_and_an_end(text, engine):
    encoder = load_encoder(text, end_of_document=END, engine=engine)
    end = parse_tokenizer(text).token_to_id(END)
    assert encoder.end_of_document == end
    assert documents(encoder, strings(TEXTS)) == reference(text, TEXTS, end)


def test_binary_slices_and_nothing():
    encoder = load_encoder(BPE, end_of_document=END)
    binary = pa.array([text.encode() for text in TEXTS], pa.large_binary())
    assert documents(encoder, binary[1:4]) == reference(BPE, TEXTS[1:4], 0)
    tokens, offsets = encoder.encode_batch(binary[:0])
    assert (tokens.tolist(), offsets.tolist()) == ([], [0])
    assert tokens.dtype == np.uint16


@pytest.mark.parametrize("text", [BPE, CHARACTERS])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_special_token_strings_in_documents_stay_text(text, engine):
    encoder = load_encoder(text, end_of_document=END, engine=engine)
    [tokens] = documents(encoder, strings([f"the{END}cat{END}"]))
    assert tokens.count(encoder.end_of_document) == 1
    assert tokens[-1] == encoder.end_of_document
    assert parse_tokenizer(text).decode(tokens[:-1]) == f"the{END}cat{END}"


ENCODER = load_encoder(BPE, end_of_document=END)
ODD = st.sampled_from([*PROBES, END, "'s", "\r\n", "  ", "ſ", "\u0301", "123"]) | st.text(
    max_size=5
)


@given(texts=st.lists(st.lists(ODD, max_size=6).map("".join), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_tokens_of_hugging_face(texts):
    assert documents(ENCODER, strings(texts)) == reference(BPE, texts, 0)


@pytest.mark.parametrize(("size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_token_dtype_holds_every_id(size, dtype):
    assert token_dtype(size) == dtype
    assert np.iinfo(dtype).max >= size - 1


def test_unknown_character_is_named():
    encoder = load_encoder(characters_tokenizer("abc", end_of_document=END), end_of_document=END)
    with pytest.raises(ValueError, match=r"'λ' \(U\+03BB\) .* found in the text 'aλb'"):
        encoder.encode_batch(strings(["abc", "", "aλb", "c"]))


def test_check_passes_for_every_engine():
    for text in (BPE, CHARACTERS):
        for engine in ("fast", "reference"):
            encoder = load_encoder(text, end_of_document=END, engine=engine)
            check_encoder(encoder, text, TEXTS)


def test_check_names_the_first_text_that_differs():
    other = train_tokenizer(["zebra " * 9], vocab_size=262, end_of_document=END)
    encoder = load_encoder(other, end_of_document=END)
    without = train_tokenizer([], vocab_size=257, end_of_document=END)
    with pytest.raises(ValueError, match="disagree at token 1 of the text 'a zebra crossing'"):
        check_encoder(encoder, without, ["a dog", "a zebra crossing", "zebra"])


def test_check_stops_after_its_share(monkeypatch):
    monkeypatch.setattr(module, "CHECK_BYTES", 10)
    taken = []
    encoder = load_encoder(BPE, end_of_document=END)
    check_encoder(encoder, BPE, (taken.append(i) or "abcd" for i in range(100)))
    assert taken == [0, 1, 2]


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", END], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["hello world this is a test of tokens"] * 30, trainer)
    return tokenizer


def test_tokenizer_that_fastokens_cannot_load_is_encoded_by_hugging_face(caplog):
    text = unigram().to_str()
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(text, end_of_document=END)
    assert "fastokens cannot encode with this tokenizer" in caplog.text
    assert documents(encoder, strings(["hello tests"])) == reference(text, ["hello tests"], 1)


def test_check_refuses_a_tokenizer_that_makes_control_tokens_of_text():
    text = unigram().to_str()  # the lattice of a unigram model finds its special tokens in text
    encoder = load_encoder(text, end_of_document=END)
    with pytest.raises(ValueError, match=rf"'{END.replace('|', '.')}' inside a document"):
        check_encoder(encoder, text, [])


def test_added_tokens_that_are_not_special_still_match():
    tokenizer = Tokenizer.from_str(BPE)
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("cat")])
    text = tokenizer.to_str()
    encoder = load_encoder(text, end_of_document=END)
    assert encoder.vocab_size == 402
    assert documents(encoder, strings(["a    cat"])) == reference(text, ["a    cat"], 0)
    check_encoder(encoder, text, TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("text", [BPE, CHARACTERS])
def test_document_of_50_mb(text):
    encoder = load_encoder(text, end_of_document=END)
    line = "the cat sat on the mat, naïve\n"  # no word crosses its end
    [short] = documents(encoder, strings([line]))
    tokens, offsets = encoder.encode_batch(strings([line * 1_700_000, line]))
    assert offsets.tolist() == [0, 1_700_000 * (len(short) - 1) + 1, len(tokens)]
    assert (tokens[: offsets[1] - 1].reshape(1_700_000, -1) == short[:-1]).all()
    assert tokens[offsets[1] - 1] == encoder.end_of_document
    assert tokens[offsets[1] :].tolist() == short


def archive_texts(path, encoding="utf-8"):
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        return [archive.read(name).decode(encoding, "replace") for name in names]


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"the real corpora are not at {CORPORA}")
def test_real_corpora_have_the_tokens_of_hugging_face():
    novels = [
        path.read_text(encoding="utf-8-sig")
        for path in sorted((CORPORA / "text/english_novels").glob("*.txt"))
    ]
    languages = archive_texts(CORPORA / "multilingual/nltk/udhr2.zip")
    text = train_tokenizer([*novels[:5], *languages], vocab_size=32_000, end_of_document=END)
    archives = [
        text
        for path in sorted((CORPORA / "text/nltk").glob("*.zip"))
        for text in archive_texts(path)
    ]
    compared = [*novels[::20], *languages, *archives]
    encoder = load_encoder(text, end_of_document=END)
    slow = load_encoder(text, end_of_document=END, engine="reference")
    assert encoder.vocab_size == 32_000
    tokens, offsets = encoder.encode_batch(strings(compared))
    expected, expected_offsets = slow.encode_batch(strings(compared))
    assert np.array_equal(offsets, expected_offsets)
    assert np.array_equal(tokens, expected)
