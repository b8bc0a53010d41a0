"""A damaged manifest is one clear ValueError, whatever the damage."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest import (
    Chunks,
    Manifest,
    Shard,
    Tokenizer,
    parse_manifest,
    read_manifest,
    render_manifest,
)

WHOLE = Manifest(
    kind="text",
    splits={
        "train": (
            Shard(
                "train-000000.tar",
                10240,
                3,
                30,
                "0" * 64,
                Chunks((0, 2), (0, 512), (512, 1024), (2, 1), (20, 10), (7, 8)),
            ),
        )
    },
    config={"shuffle_seed": 0},
    libraries={"numpy": "2.0"},
    tokenizer=Tokenizer("tokenizer.json", "1" * 64, 9, 8),
    token_dtype="uint16",
)
TREE = json.loads(render_manifest(WHOLE))
SHARD = ("splits", "train", 0)
DAMAGES = [
    (("tokenizer", "vocab_size"), None, "vocab_size of tokenizer is None"),
    (("tokenizer", "vocab_size"), 0, "vocab_size is 0"),
    (("tokenizer", "vocab_size"), 2**33, "vocab_size is 8589934592"),
    (("tokenizer", "vocab_size"), True, "must be a whole number"),
    (("tokenizer", "file"), None, "file of tokenizer"),
    (("tokenizer", "file"), "../a", "no plain file name"),
    (("tokenizer",), [], "tokenizer is"),
    (("splits",), None, "splits is None, must be an object"),
    (("splits",), [], "splits is"),
    (("splits", "train"), None, "splits.train is"),
    (("splits", "train"), [None], "a shard is"),
    (("splits", "../x"), [], "../x is no plain file name"),
    (("token_dtype",), "abc", "token_dtype is abc"),
    (("token_dtype",), [], "token_dtype is"),
    (("kind",), 1, "kind is"),
    (("config",), [], "config is"),
    (("config",), {"a": "\ud800"}, "surrogates"),
    (("config",), {}, "config_hash is not"),
    (("libraries",), None, "libraries is"),
    (("libraries",), {"numpy": 2}, "libraries.numpy is 2, must be a text"),
    ((*SHARD, "bytes"), None, "bytes of a shard"),
    ((*SHARD, "bytes"), -1, "must be 0 to"),
    ((*SHARD, "name"), None, "name of a shard"),
    ((*SHARD, "name"), "", "no plain file name"),
    ((*SHARD, "chunks"), None, "chunks of a shard"),
    ((*SHARD, "chunks"), {}, "has the fields"),
    ((*SHARD, "chunks", "samples"), [None], "samples of the chunks"),
    ((*SHARD, "chunks", "samples"), [5, -2], "samples of the chunks"),
    ((*SHARD, "chunks", "stop"), ["a"], "stop of the chunks"),
    ((*SHARD, "chunks", "stop"), 5, "stop of chunks of train-000000.tar is"),
    ((*SHARD, "chunks", "stop"), [512], "differ in length"),
    ((*SHARD, "more"), 1, "has the fields"),
    (("format",), True, "format True"),
    (("fingerprint",), None, "do not give its fingerprint"),
]


def damaged(path, value):
    tree = copy.deepcopy(TREE)
    place = tree
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(tree)


def test_a_whole_manifest_is_read_back():
    assert parse_manifest(render_manifest(WHOLE), where="here") == WHOLE


@pytest.mark.parametrize(("path", "value", "message"), DAMAGES)
def test_each_damage_is_named(path, value, message):
    with pytest.raises(ValueError, match="^here: ") as raised:
        parse_manifest(damaged(path, value), where="here")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "{}", "[" * 10**6, '{"format":' * 10**5])
def test_other_texts_are_no_manifest(text):
    with pytest.raises(ValueError, match="^here: damaged, no readable manifest"):
        parse_manifest(text, where="here")


def test_numbers_and_nesting_without_end():
    with pytest.raises(ValueError, match="^here: damaged"):
        parse_manifest('{"format": ' + "1" * 5000 + "}", where="here")
    deep = json.dumps(TREE).replace('"shuffle_seed": 0', '"a": ' + "[" * 900 + "]" * 900)
    with pytest.raises(ValueError, match="^here: damaged"):
        parse_manifest(deep, where="here")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="manifest.json: damaged"):
        read_manifest(tmp_path)


def places(tree, path=()):
    """Every path into the tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, child in children:
        yield (*path, name)
        if isinstance(child, dict | list):
            yield from places(child, (*path, name))


@given(
    path=st.sampled_from(list(places(TREE))),
    value=st.sampled_from([None, True, -1, 0.5, 2**70, "", "\ud800", [], [None], {}, {"a": 1}]),
)
def test_any_other_value_anywhere_is_one_error_or_none(path, value):
    try:
        parse_manifest(damaged(path, value), where="here")
    except ValueError as error:
        assert str(error).startswith("here: ")
        assert str(error).isprintable()
