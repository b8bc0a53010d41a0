"""The encoder: texts become token ids, an end-of-document token behind each.

BPE files are encoded by fastokens, files of characters by a table, what neither can by Hugging Face
tokenizers. Special-token strings inside a text are text; `check_encoder` proves that, and that the
tokens are those of Hugging Face tokenizers, before a build starts.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import fastokens
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer as HuggingFace

from pipeline.refused import RefusedError
from pipeline.tokenizer import describe_tokenizer, is_characters, parse_tokenizer, special_tokens

Ids = npt.NDArray[np.unsignedinteger[Any]]
Offsets = npt.NDArray[np.int64]

PROBES = (
    "",
    "\r\n\r\n \t x  y   \n\n  z\u00a0\u3000\u2028\u200b",
    "it's IT'S we'LL 'ſ 'tis 1234567 ½ ٣٤ Ⅻ 3.14e-10",
    "e\u0301 ß İ ǅ ﬁ \ufeff \x00 \x7f",
    "中文字符 नमस्ते ภาษาไทย العربية 👩‍👩‍👧 🇩🇪",
    "def f(x):\n\treturn {'a': [1, 2]}  # <tag/> $x_1$ \\alpha",
)
"""Texts on which tokenizers are known to disagree, compared in every check."""
CHECK_BYTES = 2**20
"""Bytes of text that a check compares: 0.4 s of Hugging Face tokenizers."""

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What turns texts into ids: one run of ids, and where each text's begin and end."""

    def encode(self, texts: pa.Array) -> tuple[Ids, Offsets]: ...


@dataclass(frozen=True, slots=True)
class Encoder:
    """Texts to tokens."""

    engine: Engine
    vocab_size: int
    """Number of ids, special tokens included."""
    end_of_document: int
    """Id behind every text."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored tokens."""
        return token_dtype(self.vocab_size)

    def encode_batch(self, texts: pa.Array) -> tuple[Ids, Offsets]:
        """Tokens of all texts in one array; text i's, with its end, are `offsets[i]:offsets[i+1]`.

        `texts` is large_binary of valid UTF-8, or large_string.
        """
        ids, ends = self.engine.encode(texts)
        offsets = ends + np.arange(len(ends))
        tokens = np.empty(offsets[-1], self.dtype)
        is_end = np.zeros(len(tokens), np.bool_)
        is_end[offsets[1:] - 1] = True
        tokens[is_end] = self.end_of_document
        tokens[~is_end] = ids
        return tokens, offsets


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def load_encoder(text: str, *, end_of_document: str, engine: str = "fast") -> Encoder:
    """The encoder of a tokenizer.json's text; engine `reference` is Hugging Face's own."""
    described = describe_tokenizer(text, end_of_document=end_of_document)
    chosen = _Reference(parse_tokenizer(text)) if engine == "reference" else _fastest(text)
    return Encoder(chosen, described.vocab_size, described.end_of_document)


def check_encoder(encoder: Encoder, text: str, samples: Iterable[str]) -> None:
    """Compare an encoder with Hugging Face tokenizers on probes and `CHECK_BYTES` of samples.

    `text` is the tokenizer.json that the encoder was loaded from.

    Raises:
        ValueError: a text that the two encode differently, or a special token that text can become.
    """
    tokenizer = parse_tokenizer(text)
    compared = _take(samples, CHECK_BYTES)
    tree = json.loads(text)
    if not is_characters(tree):  # these know the characters of their corpus alone
        _check_specials(encoder, special_tokens(tokenizer), unknown=_unknown_token(tree["model"]))
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        compared += [*PROBES, *(f"a {content}{content} b" for content in added)]
    array = pa.array(compared, pa.large_string())
    found, offsets = encoder.engine.encode(array)
    expected, expected_offsets = _Reference(tokenizer).encode(array)
    for i, sample in enumerate(compared):
        ours = found[offsets[i] : offsets[i + 1]]
        theirs = expected[expected_offsets[i] : expected_offsets[i + 1]]
        if not np.array_equal(ours, theirs):
            raise ValueError(_difference(sample, ours, theirs))


def _fastest(text: str) -> Engine:
    tree = json.loads(text)
    if is_characters(tree):
        return _Characters(tree["model"]["vocab"])
    try:
        return _Fast(text)
    except ValueError as error:
        logger.warning(
            "fastokens cannot encode with this tokenizer (%s); Hugging Face tokenizers does it, "
            "some 50 times slower",
            error,
        )
        return _Reference(parse_tokenizer(text))


class _Fast:
    """fastokens: no Python object per token, 165 to 320 MB/s on one core."""

    def __init__(self, text: str) -> None:
        self.tokenizer = fastokens.Tokenizer.from_json_str(text)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, texts: pa.Array) -> tuple[Ids, Offsets]:
        strings = texts.cast(pa.large_string()).to_pylist()
        ids, offsets = self.tokenizer.encode_batch_flat(strings, split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)


class _Reference:
    """Hugging Face tokenizers: 2 to 3 MB/s on one core, and right by definition."""

    def __init__(self, tokenizer: HuggingFace) -> None:
        self.tokenizer = tokenizer

    def encode(self, texts: pa.Array) -> tuple[Ids, Offsets]:
        strings = texts.cast(pa.large_string()).to_pylist()
        encodings = self.tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        parts = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return np.concatenate([np.empty(0, np.uint32), *parts]), _ends([len(p) for p in parts])


class _Characters:
    """A table from code points to ids."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.table = np.full(0x110000, -1, np.int32)
        for character, index in vocabulary.items():
            self.table[ord(character)] = index

    def encode(self, texts: pa.Array) -> tuple[Ids, Offsets]:
        strings = texts.cast(pa.large_string())
        codes = np.frombuffer("".join(strings.to_pylist()).encode("utf-32-le"), np.uint32)
        ids = self.table[codes]
        offsets = _ends(pc.utf8_length(strings).to_numpy())
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            where = int(np.searchsorted(offsets, unknown[0], side="right")) - 1
            raise RefusedError(
                f"character {chr(codes[unknown[0]])!r} (U+{codes[unknown[0]]:04X}) is not in the "
                f"tokenizer's vocabulary; found in the text {_excerpt(strings[where].as_py())}"
            )
        return ids.astype(np.uint32), offsets


def _ends(lengths: Sequence[int] | npt.NDArray[Any]) -> Offsets:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _take(texts: Iterable[str], max_bytes: int) -> list[str]:
    taken: list[str] = []
    for text in texts:
        taken.append(text[:max_bytes])
        max_bytes -= len(taken[-1].encode())
        if max_bytes <= 0:
            break
    return taken


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The token that stands for what the vocabulary lacks: it is no control token."""
    if model.get("unk_id") is not None:  # of Unigram
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _check_specials(encoder: Encoder, specials: dict[str, int], *, unknown: str | None) -> None:
    for content, index in specials.items():
        if content == unknown:
            continue
        ids, _ = encoder.engine.encode(pa.array([f"a{content}b", content], pa.large_string()))
        if index in ids:
            raise ValueError(
                f"the text '{content}' inside a document would become the special token "
                f"{index}; such a tokenizer is not safe for untrusted text"
            )


def _difference(text: str, ours: Ids, theirs: Ids) -> str:
    common = min(len(ours), len(theirs))
    at = int(np.argmin(np.append(ours[:common] == theirs[:common], False)))
    return (
        f"fastokens and Hugging Face tokenizers disagree at token {at} of the text "
        f"{_excerpt(text)}: {ours[at : at + 5].tolist()} and {theirs[at : at + 5].tolist()}; "
        "tokenizer.engine=reference encodes with the latter, some 50 times slower"
    )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")
