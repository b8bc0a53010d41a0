"""The rules for token blocks: tokens, where documents start, provenance, and how they fit."""

import io
import json
import re
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.verify_shard import Findings, StoredSample

RULES = {
    "tokens": "tokens.npy is a flat array of the dataset's type, all ids in the vocabulary",
    "docs": "docs.npy holds ascending offsets, behind each end of document and nowhere else",
    "json": "json lists the key of each document in the block and the number of tokens",
}

MAX_HEADER_BYTES = 10 + 2**16
"""What a header of version 1.0 takes at most."""

_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class TextRules:
    """What the manifest says of every block."""

    token_dtype: np.dtype[Any]
    """Type of tokens."""
    vocab_size: int
    """Ids are below it."""
    end_of_document: int
    """Id behind every document."""
    extensions: tuple[str, ...] = ("docs.npy", "json", "tokens.npy")
    """The members of a block."""

    def check(
        self, samples: list[StoredSample], tar: memoryview, name: str, findings: Findings
    ) -> list[int]:
        """Check the blocks of one shard; returns the tokens of each, nothing if some is damaged."""
        counts = []
        begins = True  # a shard begins with a document
        for sample in samples:
            where = f"{name}: {sample.key}"
            contents = sample.contents(tar)
            tokens = self._tokens(contents["tokens.npy"], where, findings)
            if tokens is None:
                return []
            counts.append(len(tokens))
            starts = self._starts(contents["docs.npy"], tokens, where, findings, begins=begins)
            begins = bool(tokens[-1] == self.end_of_document)
            if starts is not None:
                _check_json(contents["json"], starts, len(tokens), where, findings)
        if not begins:
            findings.add("docs", f"{name}: {samples[-1].key}", "the last document has no end")
        return counts

    def _tokens(
        self, content: memoryview, where: str, findings: Findings
    ) -> npt.NDArray[Any] | None:
        findings.checked["tokens"] += 1
        try:
            tokens = _read_npy(content, self.token_dtype)
        except ValueError as error:
            findings.add("tokens", where, f"tokens.npy: {error}")
            return None
        if not len(tokens):
            findings.add("tokens", where, "tokens.npy: is empty")
            return None
        if tokens.max() >= self.vocab_size:
            at = int(np.argmax(tokens >= self.vocab_size))
            message = f"token {at} is {tokens[at]}; the vocabulary has {self.vocab_size} ids"
            findings.add("tokens", where, message)
        return tokens

    def _starts(
        self,
        content: memoryview,
        tokens: npt.NDArray[Any],
        where: str,
        findings: Findings,
        *,
        begins: bool,
    ) -> npt.NDArray[Any] | None:
        findings.checked["docs"] += 1
        try:
            found = _read_npy(content, np.dtype(np.uint32))
        except ValueError as error:
            findings.add("docs", where, f"docs.npy: {error}")
            return None
        behind = np.flatnonzero(tokens[:-1] == self.end_of_document) + 1
        expected = np.concatenate([[0], behind]) if begins else behind
        if not np.array_equal(found, expected):
            findings.add("docs", where, f"docs.npy: {_starts_fault(found, expected)}")
            return None
        return found


def _read_npy(content: memoryview, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The flat array of a .npy file that holds nothing else; a damaged header allocates nothing."""
    file = io.BytesIO(content[:MAX_HEADER_BYTES])
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("is not of version 1.0")
    try:
        shape, _, found = np.lib.format.read_array_header_1_0(file)
    except (TokenError, UnicodeDecodeError) as error:
        raise ValueError(f"has a damaged header ({error})") from None
    if found != dtype:
        raise ValueError(f"has type {found}, must have {dtype}")
    if len(shape) != 1:
        raise ValueError(f"has shape {shape}, must be flat")
    size = len(content) - file.tell()
    if size != shape[0] * dtype.itemsize:
        raise ValueError(f"holds {size} bytes of {shape[0]} items of {dtype.itemsize}")
    return np.frombuffer(content, dtype, offset=file.tell())


def _starts_fault(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    wrong = sorted(set(found.tolist()) ^ set(expected.tolist()))
    if not wrong:
        return "offsets do not ascend"
    if wrong[0] in found:
        return f"offset {wrong[0]} is given, and no document starts there"
    return f"offset {wrong[0]} is missing, and a document starts there"


def _check_json(
    content: memoryview, starts: npt.NDArray[Any], tokens: int, where: str, findings: Findings
) -> None:
    findings.checked["json"] += 1
    try:
        tree = json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        findings.add("json", where, f"json: {error}")
        return
    if not isinstance(tree, dict) or set(tree) != {"documents", "tokens"}:
        findings.add("json", where, "json: must have the fields documents and tokens")
        return
    if tree["tokens"] != tokens:
        findings.add("json", where, f"json: says {tree['tokens']} tokens, the block has {tokens}")
    keys = tree["documents"]
    if not isinstance(keys, list) or not all(
        isinstance(k, str) and _KEY.fullmatch(k) for k in keys
    ):
        findings.add("json", where, "json: documents must be keys of 16 hex digits")
        return
    continues = not len(starts) or starts[0] != 0
    if len(keys) != len(starts) + continues:
        message = f"json: lists {len(keys)} documents, the block has {len(starts) + continues}"
        findings.add("json", where, message)
