"""Damage of the contents of token blocks, in a shard that is whole."""

import dataclasses
import io
import json

import numpy as np
import pytest

from pipeline.blocks import cut_blocks
from pipeline.tar import encode_npy, write_shard
from pipeline.verify_shard import verify_shard
from pipeline.verify_text import RULES, TextRules

END = 8


def blocks():
    """Six documents of 20 tokens in blocks of 50, 50 and 20: two begin inside of a document."""
    rng = np.random.default_rng(0)
    ends = np.arange(20, 121, 20)
    tokens = rng.integers(0, END, 120).astype(np.uint16)
    tokens[ends - 1] = END
    keys = [rng.bytes(16).hex() for _ in ends]
    return list(cut_blocks("train-000001", tokens, ends - 20, keys, block_tokens=50))


def array(change):
    """A change of an array, as one of the bytes of its member."""
    return lambda content: encode_npy(change(np.load(io.BytesIO(content)).copy()))


def tree(change):
    """A change of a parsed json, as one of the bytes of its member."""
    return lambda content: json.dumps(change(json.loads(content))).encode()


def put(values, index, value):
    values[index] = value
    return values


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


DAMAGES = {
    "token outside of the vocabulary": (
        ("tokens.npy", 1, array(lambda tokens: put(tokens, 3, 9))),
        ("tokens", "token 3 is 9; the vocabulary has 9 ids"),
    ),
    "tokens of another type": (
        ("tokens.npy", 1, array(lambda tokens: tokens.astype(np.uint32))),
        ("tokens", "has type uint32, must have uint16"),
    ),
    "tokens of another shape": (
        ("tokens.npy", 1, array(lambda tokens: tokens.reshape(5, 10))),
        ("tokens", "has shape (5, 10), must be flat"),
    ),
    "tokens cut": (
        ("tokens.npy", 1, lambda content: content[:-2]),
        ("tokens", "holds 98 bytes of 50 items of 2"),
    ),
    "pickled objects": (
        ("tokens.npy", 1, lambda _: pickled()),
        ("tokens", "has type object, must have uint16"),
    ),
    "no array": (
        ("docs.npy", 1, lambda _: b"PK\x03\x04"),
        ("docs", "docs.npy: "),
    ),
    "end of document inside a document": (
        ("tokens.npy", 1, array(lambda tokens: put(tokens, 3, 8))),
        ("docs", "offset 4 is missing, and a document starts there"),
    ),
    "offset inside a document": (
        ("docs.npy", 1, array(lambda starts: put(starts, 0, 11))),
        ("docs", "offset 10 is missing, and a document starts there"),
    ),
    "offset behind the block": (
        ("docs.npy", 1, array(lambda starts: np.append(starts, np.uint32(50)))),
        ("docs", "offset 50 is given, and no document starts there"),
    ),
    "offsets that descend": (
        ("docs.npy", 1, array(lambda starts: starts[::-1])),
        ("docs", "do not ascend"),
    ),
    "first block begins inside a document": (
        ("docs.npy", 0, array(lambda starts: starts[1:])),
        ("docs", "offset 0 is missing"),
    ),
    "last document without an end": (
        ("tokens.npy", 2, array(lambda tokens: put(tokens, -1, 0))),
        ("docs", "the last document has no end"),
    ),
    "json cut": (
        ("json", 1, lambda content: content[:-1]),
        ("json", "json: "),
    ),
    "json of another form": (
        ("json", 1, tree(lambda tree: {**tree, "more": 1})),
        ("json", "must have the fields documents and tokens"),
    ),
    "json with other tokens": (
        ("json", 1, tree(lambda tree: {**tree, "tokens": 51})),
        ("json", "says 51 tokens, the block has 50"),
    ),
    "json with a document too few": (
        ("json", 1, tree(lambda tree: {**tree, "documents": tree["documents"][1:]})),
        ("json", "lists 2 documents, the block has 3"),
    ),
    "json with other keys": (
        ("json", 1, tree(lambda tree: {**tree, "documents": ["x"] * 3})),
        ("json", "16 hex digits"),
    ),
}
"""By name: the member and the block that is changed, how, and the rule and message of the fault."""


def faults(folder, samples):
    path = folder / "train-000001.tar"
    rules = TextRules(np.dtype(np.uint16), vocab_size=9, end_of_document=END)
    findings = verify_shard(path, write_shard(path, samples, chunk_bytes=1), rules)
    return [(fault.rule, fault.where, fault.message) for fault in findings.faults]


def test_whole_blocks_have_no_fault(tmp_path):
    assert faults(tmp_path, blocks()) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named(tmp_path, name):
    (extension, sample, change), (rule, message) = DAMAGES[name]
    samples = blocks()
    files = samples[sample].files
    samples[sample] = dataclasses.replace(
        samples[sample], files={**files, extension: change(files[extension])}
    )
    ((its_rule, where, its_message),) = faults(tmp_path, samples)
    assert (its_rule, where) == (rule, f"train-000001.tar: train-000001-{sample:06d}")
    assert message in its_message


def test_every_rule_has_a_damage():
    assert {rule for _, (rule, _) in DAMAGES.values()} == set(RULES)
