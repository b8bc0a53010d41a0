"""Tokenizer files: trained from a sample, given, or the characters of the corpus.

Whatever its origin, `DATASET/tokenizer.json` is a Hugging Face tokenizer, so that `tokenizers` and
transformers load it. Equal samples give equal bytes, in any order and with any number of threads.

`python -m pipeline.tokenizer DATASET [TEXT]` describes a tokenizer and shows the tokens of a text.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

from configs import command
from configs.conditional import only_with, resolve
from pipeline.manifest import Tokenizer
from pipeline.urls import read_url

FILE_NAME = "tokenizer.json"

SPLIT_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where BPE cuts words, as Llama 3 does: on the novels 4.29 bytes a token against GPT-2's 4.17."""
SPLIT_CHARACTERS = r"[\s\S]"
MIN_VOCAB_SIZE = 257
"""The 256 bytes and the end of document."""


@dataclass(frozen=True)
class Config:
    """Where the tokenizer of a text dataset comes from."""

    kind: Literal["train", "load", "characters"] = "train"
    """`train` a byte-level BPE on the corpus, `load` a tokenizer.json, or take its `characters`."""
    vocab_size: int | None = only_with("kind", "train", default=32_000)
    """Of `train`: number of tokens, among them the 256 bytes and the end of document."""
    sample_mib: int | None = only_with("kind", "train", default=256)
    """Of `train`: size of the sample of the corpus, MiB of text; it is held in memory."""
    path: str | None = None
    """Of `load`: path or fsspec URL of a Hugging Face tokenizer.json."""
    end_of_document: str = "<|endoftext|>"
    """Special token behind every document."""
    engine: Literal["fast", "reference"] = "fast"
    """`fast`: fastokens, 165 to 320 MB/s a core; `reference`: Hugging Face's, 2 to 3 MB/s."""

    def __post_init__(self) -> None:
        resolve(self)
        if self.kind == "load" and self.path is None:
            raise ValueError("path: missing; kind 'load' needs the path of a tokenizer.json")
        if self.kind != "load" and self.path is not None:
            raise ValueError(
                f"path: kind '{self.kind}' makes the tokenizer itself; use kind 'load'"
            )
        if self.vocab_size is not None and self.vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(f"vocab_size: {self.vocab_size}; at least {MIN_VOCAB_SIZE}")
        if self.sample_mib is not None and self.sample_mib < 1:
            raise ValueError(f"sample_mib: {self.sample_mib}; at least 1")
        if len(self.end_of_document) < 2:
            raise ValueError(
                f"end_of_document: '{self.end_of_document}'; at least two characters, "
                "so that no character of a text is taken for it"
            )


def main(argv: Sequence[str]) -> None:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tokenizer",
        description="Describe the tokenizer of a dataset, and show the tokens of a text.",
    )
    parser.add_argument("path", metavar="DATASET", type=Path, help="dataset, or a tokenizer.json")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="text to encode")
    arguments = parser.parse_args(argv)
    path = arguments.path / FILE_NAME if arguments.path.is_dir() else arguments.path
    try:
        tokenizer = parse_tokenizer(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no Hugging Face tokenizer.json ({error})") from None
    specials = [f"{token} ({index})" for token, index in special_tokens(tokenizer).items()]
    print(f"{path}: {type(tokenizer.model).__name__}, {_vocab_size(tokenizer):,} ids")
    print(f"special tokens: {_listing(specials)}")
    if arguments.text is not None:
        encoding = tokenizer.encode(arguments.text, add_special_tokens=False)
        print(f"{len(encoding.ids)} tokens for {len(arguments.text.encode())} bytes:")
        for index in encoding.ids:
            print(f"{index:>8} {tokenizer.decode([index])!r}")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, end_of_document: str) -> str:
    """The tokenizer.json of a byte-level BPE; it has fewer tokens where the texts give no more."""
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(end_of_document, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=False)


def characters_tokenizer(characters: Iterable[str], *, end_of_document: str) -> str:
    """The tokenizer.json of single characters: ids by code point, the end of document last."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(characters)))}
    tokenizer = HuggingFace(models.WordLevel(vocabulary, unk_token=end_of_document))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT_CHARACTERS), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(end_of_document, special=True, normalized=False)])
    return tokenizer.to_str(pretty=False)


def read_tokenizer(source: str, *, end_of_document: str) -> str:
    """The text of a tokenizer.json at a path or URL.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tokenizer, or has no special token of the name `end_of_document`.
    """
    content = read_url(source)
    try:
        text = content.decode("utf-8")
        tokenizer = parse_tokenizer(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{source}: no Hugging Face tokenizer.json ({error})") from None
    _find_special(tokenizer, end_of_document, where=source)
    return text


def write_tokenizer(text: str, path: Path) -> None:
    """Write a tokenizer.json, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def describe_tokenizer(text: str, *, end_of_document: str) -> Tokenizer:
    """The manifest's row of a tokenizer.json.

    Raises:
        ValueError: it is no tokenizer, or has no special token of the name `end_of_document`.
    """
    tokenizer = parse_tokenizer(text)
    return Tokenizer(
        file=FILE_NAME,
        sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        vocab_size=_vocab_size(tokenizer),
        end_of_document=_find_special(tokenizer, end_of_document, where=FILE_NAME),
    )


def parse_tokenizer(text: str) -> HuggingFace:
    """A tokenizer for text that is no prompt: nothing is added, cut, padded or a control token.

    Raises:
        ValueError: no JSON, or not of a tokenizer.
    """
    json.loads(text)
    try:
        tokenizer = HuggingFace.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(str(error)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # as text, despite the name
    return tokenizer


def special_tokens(tokenizer: HuggingFace) -> dict[str, int]:
    """The special tokens and their ids, in order of the ids."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    return {token.content: index for index, token in added if token.special}


def is_characters(tree: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is one that `characters_tokenizer` made."""
    model, split = tree.get("model"), tree.get("pre_tokenizer")
    return (
        isinstance(model, dict)
        and isinstance(split, dict)
        and model.get("type") == "WordLevel"
        and split.get("pattern") == {"Regex": SPLIT_CHARACTERS}
        and tree.get("normalizer") is None
        and all(len(token) == 1 for token in model["vocab"])
        and all(token["special"] for token in tree["added_tokens"])
    )


def _vocab_size(tokenizer: HuggingFace) -> int:
    """One more than the largest id: ids may have gaps."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def _find_special(tokenizer: HuggingFace, token: str, *, where: str) -> int:
    specials = special_tokens(tokenizer)
    if token not in specials:
        raise ValueError(
            f"{where}: no special token '{token}' to end documents with; "
            f"set end_of_document to one of: {_listing(list(specials))}"
        )
    return specials[token]


def _listing(names: Sequence[str]) -> str:
    """Up to 20 names; a Llama 3 file has 256 special tokens."""
    shown = ", ".join(names[:20]) or "it has none"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


if __name__ == "__main__":
    command.run(lambda: main(sys.argv[1:]))
