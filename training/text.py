"""Text to tokens and back with the dataset's own tokenizer, for prompts and samples."""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from pipeline.manifest import Tokenizer as Described
from training.data.shards import load_manifest, read_file
from training.filling import fill
from training.models import encoder_decoder
from training.sampling import check_drawing, generate

SENTINEL = re.compile(r"<extra_id_(\d+)>")
"""How a gap is written in a prompt and a sample of an encoder-decoder, as T5's tokenizers do."""


class TextCodec:
    """The tokenizer of a dataset."""

    def __init__(self, tokenizer: Tokenizer, *, end_of_document: int, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.end_of_document = end_of_document
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt, control tokens as plain text; an empty one starts a document."""
        try:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # noqa: BLE001  (the library raises nothing narrower)
            raise ValueError(f"the tokenizer has no tokens for {text!r}: {error}") from None
        return tokens or [self.end_of_document]

    def encode_source(self, text: str) -> list[int]:
        """Tokens of a prompt with gaps; one that has none has its gap at the end."""
        if not SENTINEL.search(text):
            text += "<extra_id_0>"
        parts = enumerate(SENTINEL.split(text))
        return [
            token
            for index, part in parts
            for token in ([self.vocab_size + int(part)] if index % 2 else self._encode_part(part))
        ]

    def _encode_part(self, text: str) -> list[int]:
        return self.encode(text) if text else []

    def decode_target(self, tokens: list[int]) -> str:
        """Text of tokens among which there are gaps."""
        pieces: list[str] = []
        part: list[int] = []
        for token in [*tokens, self.vocab_size]:
            if token < self.vocab_size:
                part.append(token)
                continue
            pieces += [self.decode(part), f"<extra_id_{token - self.vocab_size}>"]
            part = []
        return "".join(pieces[:-1])

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens; ends of documents are shown as blank lines."""
        documents: list[list[int]] = [[]]
        for token in tokens:
            if token == self.end_of_document:
                documents.append([])
            else:
                documents[-1].append(token)
        return "\n\n".join(self.tokenizer.decode(part) for part in documents if part)

    def names(self, tokens: list[int]) -> list[str]:
        """The text of each token by itself."""
        return [self.tokenizer.decode([token]) for token in tokens]


def load_codec(dataset_dir: str | Path) -> TextCodec:
    """The tokenizer that a dataset was made with.

    Raises:
        ValueError: the file is not the one that the manifest names.
    """
    content, described = read_tokenizer(dataset_dir)
    return build_codec(content, described)


def build_codec(content: bytes, described: Described) -> TextCodec:
    """The codec of a tokenizer.json and of what is to be known of it."""
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True
    return TextCodec(
        tokenizer, end_of_document=described.end_of_document, vocab_size=described.vocab_size
    )


def read_tokenizer(dataset_dir: str | Path) -> tuple[bytes, Described]:
    """The tokenizer.json of a dataset, and what the manifest says of it.

    Raises:
        ValueError: the file is not the one that the manifest names.
    """
    described = load_manifest(str(dataset_dir)).tokenizer
    if described is None:
        raise ValueError(f"{dataset_dir}: has no tokenizer; is it a text dataset?")
    return read_tokenizer_file(str(dataset_dir), described), described


def read_tokenizer_file(dataset_dir: str, described: Described) -> bytes:
    """The tokenizer.json that the manifest of a dataset describes.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: the file is not the one that the manifest names.
    """
    try:
        content = read_file(dataset_dir, described.file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{dataset_dir}: no {described.file}, which its manifest names; copy the whole dataset"
        ) from None
    if hashlib.sha256(content).hexdigest() != described.sha256:
        raise ValueError(
            f"{dataset_dir}/{described.file}: its sha256 is not the manifest's {described.sha256}"
        )
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How the tokens of a continuation are drawn."""

    num_tokens: int
    """Length of the continuation, tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token always."""
    top_k: int = 0
    """Draw among so many likeliest tokens; 0 among all."""
    top_p: float = 1.0
    """Draw among the fewest likeliest tokens of this share of probability."""
    seed: int = 0
    """The same seed gives the same tokens."""

    def __post_init__(self) -> None:
        check_drawing(**asdict(self))


def complete(
    model: nn.Module, codec: TextCodec, prompt: str, *, context: int, drawing: Drawing
) -> str:
    """The prompt and its continuation as text, or, of an encoder-decoder, what fills its gaps.

    `context` is the number of tokens that the model looks back on: the length it was trained with.

    Raises:
        ValueError: the prompt is longer than that.
    """
    fills = isinstance(model, encoder_decoder.Model)
    tokens = encode_prompt(codec, prompt, context=context, fills=fills)
    was_training = model.training
    model.eval()
    try:
        if isinstance(model, encoder_decoder.Model):
            end = codec.end_of_document
            return codec.decode_target(fill(model, tokens, end=end, **asdict(drawing)))
        whole = torch.tensor([tokens], device=next(model.parameters()).device)  # (1, T)
        result = generate(model, whole, max_positions=context, **asdict(drawing))
        return codec.decode(result[0].tolist())
    finally:
        model.train(was_training)


def encode_prompt(codec: TextCodec, prompt: str, *, context: int, fills: bool = False) -> list[int]:
    """Tokens of a prompt, refused where the model would not see its beginning.

    Where the model `fills` gaps, the prompt may have some.
    """
    tokens = codec.encode_source(prompt) if fills else codec.encode(prompt)
    if len(tokens) > context:
        raise ValueError(
            f"the prompt has {len(tokens):,} tokens, but the model was trained on sequences of "
            f"{context:,} (data.sequence_length); shorten the prompt"
        )
    return tokens
