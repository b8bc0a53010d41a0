"""Whether two tokenizers mean the same by an id: a model knows those of its own training."""

import json
from typing import Any


def find_other_meaning(theirs: bytes, ours: bytes) -> str:
    """The first id of ours that means something else there; empty where all are the same.

    Both are contents of a tokenizer.json.
    """
    try:
        there = _by_id(json.loads(theirs))
    except (ValueError, KeyError, TypeError) as error:
        return f"its tokenizer.json is damaged ({error!r})"
    here = _by_id(json.loads(ours))
    for number, token in sorted(here.items()):
        if there.get(number) != token:
            meant = repr(there[number]) if number in there else "nothing"
            return f"token {number} is {meant} there, {token!r} in the dataset"
    return ""


def _by_id(tree: dict[str, Any]) -> dict[int, str]:
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, list):  # of Unigram: pieces and their scores
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    tokens = {number: token for token, number in vocabulary.items()}
    return tokens | {token["id"]: token["content"] for token in tree["added_tokens"]}
