import numpy as np
import pyarrow as pa
import pytest

from pipeline.batch import DOCUMENTS, ENCODED, REJECTS, Batch, Count
from pipeline.encode import EncodeDocuments, encode_documents
from pipeline.encoder import load_encoder
from pipeline.key import add_keys
from pipeline.tokenizer import (
    characters_tokenizer,
    parse_tokenizer,
    train_tokenizer,
    write_tokenizer,
)

END = "<|endoftext|>"
TEXTS = ["the cat sat", "", "naïve café", "the end <|endoftext|>"]


def batch_of(texts):
    columns = [
        pa.array(["a.txt"] * len(texts), pa.string()).dictionary_encode(),
        pa.array(range(len(texts)), pa.int64()),
        pa.array([text.encode() for text in texts], pa.large_binary()),
    ]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    rejects = pa.RecordBatch.from_pylist([], schema=REJECTS)
    return Batch(0, documents, rejects, (Count("read", 9, 99, 4, 40),), True)


def tokens_of(batch, dtype):
    payload = batch.documents.column("payload").to_pylist()
    return [np.frombuffer(tokens, dtype).tolist() for tokens in payload]


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_stage_puts_tokens_in_the_place_of_text(tmp_path, engine):
    text = train_tokenizer(TEXTS, vocab_size=270, end_of_document=END)
    path = tmp_path / "tokenizer.json"
    write_tokenizer(text, path)
    keyed = add_keys(batch_of(TEXTS))
    [result] = [keyed] | EncodeDocuments(str(path), END, engine)
    tokenizer = parse_tokenizer(text)
    assert result.documents.schema == ENCODED
    expected = [[*tokenizer.encode(sample).ids, 0] for sample in TEXTS]
    assert tokens_of(result, np.uint16) == expected
    assert result.documents.column("weight").to_pylist() == list(map(len, expected))
    assert result.documents.column("bytes").to_pylist() == [11, 0, 12, 21]
    assert result.documents.column("key").equals(keyed.documents.column("key"))
    assert result.counts == (Count("read", 9, 99, 4, 40), Count("encode", 4, 44, 4, 44))


@pytest.mark.parametrize(("size", "item"), [(10, np.uint16), (65_536, np.uint32)])
def test_token_type_follows_the_vocabulary(size, item):
    characters = [chr(code) for code in range(0x10000, 0x10000 + size)]
    text = characters_tokenizer(characters, end_of_document=END)
    encoder = load_encoder(text, end_of_document=END)
    result = encode_documents(add_keys(batch_of([characters[-1]])), encoder)
    assert tokens_of(result, item) == [[size - 1, size]]


def test_empty_batch():
    text = characters_tokenizer("abc", end_of_document=END)
    result = encode_documents(add_keys(batch_of([])), load_encoder(text, end_of_document=END))
    assert result.documents.num_rows == 0
    assert result.documents.schema == ENCODED
