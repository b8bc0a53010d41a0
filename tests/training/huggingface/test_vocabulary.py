"""Tokenizers that give the same ids another meaning."""

import json

import pytest

from training.huggingface.vocabulary import find_other_meaning


def of(vocabulary, added=()):
    tokens = [{"id": number, "content": token} for number, token in added]
    return json.dumps({"model": {"vocab": vocabulary}, "added_tokens": tokens}).encode()


OURS = of({"a": 0, "b": 1}, [(2, "<end>")])


@pytest.mark.parametrize(
    "theirs",
    [
        OURS,
        of({"b": 1, "a": 0, "<end>": 2}),
        of({"a": 0, "b": 1, "c": 3}, [(2, "<end>")]),  # more than ours
        of([["a", -1.0], ["b", -2.0], ["<end>", 0.0]]),
    ],
)
def test_the_same(theirs):
    assert find_other_meaning(theirs, OURS) == ""


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        (of({"a": 0, "c": 1}), "token 1 is 'c' there, 'b' in the dataset"),
        (of({"a": 0, "b": 1}), "token 2 is nothing there, '<end>' in the dataset"),
        (of({"a": 0, "b": 1}, [(2, "</s>")]), "token 2 is '</s>' there, '<end>' in the dataset"),
        (b"{}", "its tokenizer.json is damaged (KeyError('model'))"),
        (b"x", "its tokenizer.json is damaged (JSONDecodeError("),
    ],
)
def test_another(theirs, told):
    assert find_other_meaning(theirs, OURS).startswith(told)
