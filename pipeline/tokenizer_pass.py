"""The tokenizer of a build: loaded, or made from the corpus in a first pass; proven before use."""

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline import normalise
from pipeline.config import TextPipelineConfig
from pipeline.corpus import Portion
from pipeline.encoder import check_encoder, load_encoder
from pipeline.fingerprints import reading_fingerprint
from pipeline.funnel import Funnel, SumFunnel, nothing_left
from pipeline.listing import listing_of
from pipeline.manifest import Tokenizer
from pipeline.read import read_portion
from pipeline.runner import Engine, run_beam
from pipeline.sample import CollectCharacters, SampleDocuments
from pipeline.stage_seconds import add_seconds
from pipeline.stages import ReadDocuments, spread_order
from pipeline.tokenizer import (
    characters_tokenizer,
    describe_tokenizer,
    read_tokenizer,
    train_tokenizer,
    write_tokenizer,
)
from pipeline.work import WorkFolder, read_json, write_json

_LOG = logging.getLogger(__name__)

CHECKED_DOCUMENTS = 100
"""Documents of the corpus that the encoder is checked on, at most."""


def make_tokenizer(
    config: TextPipelineConfig, portions: Sequence[Portion], engine: Engine, work: WorkFolder
) -> tuple[str, Tokenizer]:
    """The text of tokenizer.json and its row of the manifest.

    Raises:
        ValueError: no tokenizer at the path, or one that encodes wrongly; no documents to make
            one from.
    """
    named = config.tokenizer
    if named.path is not None:
        text = read_tokenizer(named.path, end_of_document=named.end_of_document)
    else:
        path = work.root / f"tokenizer-{reading_fingerprint(config, portions)[:16]}.json"
        if not path.exists():
            write_tokenizer(_from_corpus(config, portions, engine, work), path)
        text = path.read_text(encoding="utf-8")
    encoder = load_encoder(text, end_of_document=named.end_of_document, engine=named.engine)
    check_encoder(encoder, text, _first_documents(config, portions))
    described = describe_tokenizer(text, end_of_document=named.end_of_document)
    if named.vocab_size is not None and described.vocab_size < named.vocab_size:
        _LOG.warning(
            "tokenizer.vocab_size: %d tokens asked for, %d made: nothing is left to merge, each "
            "word of the sample is one token already",
            named.vocab_size,
            described.vocab_size,
        )
    return text, described


def _from_corpus(
    config: TextPipelineConfig, portions: Sequence[Portion], engine: Engine, work: WorkFolder
) -> str:
    """Read the corpus for a sample or its characters, and make the tokenizer in this process."""
    named = config.tokenizer
    if named.kind == "characters":
        collect: beam.PTransform = CollectCharacters()
    else:
        assert named.sample_mib is not None
        collect = SampleDocuments(
            sample_bytes=named.sample_mib * 2**20,
            portion_bytes=tuple(portion.bytes for portion in portions),
            seed=config.shuffle_seed,
        )
    kept, emptiness = _read(config, portions, collect, engine, work)
    if not kept:
        raise ValueError(emptiness)
    if named.kind == "characters":
        return characters_tokenizer(kept, end_of_document=named.end_of_document)
    assert named.vocab_size is not None
    started = time.monotonic()
    text = train_tokenizer(kept, vocab_size=named.vocab_size, end_of_document=named.end_of_document)
    add_seconds(work, {"TrainTokenizer": time.monotonic() - started})
    return text


def _read(
    config: TextPipelineConfig,
    portions: Sequence[Portion],
    collect: beam.PTransform,
    engine: Engine,
    work: WorkFolder,
) -> tuple[Any, str]:
    """What `collect` keeps of the filtered documents, and what to say if that is nothing.

    Both come from Beam's workers as files of the work folder.
    """
    paths = work.root / "sample.json", work.root / "emptiness.json"
    ordered = spread_order(portions, engine.num_workers)

    def construct(pipeline: beam.Pipeline, listing: str) -> None:
        documents = pipeline | "ReadDocuments" >> ReadDocuments(config, listing, work)
        sample = documents | "CollectSample" >> collect
        _ = sample | "KeepSample" >> beam.Map(_keep, str(paths[0]))
        emptiness = documents | "SumFunnel" >> SumFunnel() | "Explain" >> beam.Map(_explain)
        _ = emptiness | "KeepEmptiness" >> beam.Map(_keep, str(paths[1]))

    with listing_of(work, ordered) as listing:
        found = run_beam(partial(construct, listing=listing), engine, work.error_log)
    add_seconds(work, found)
    sample, emptiness = (read_json(path) for path in paths)
    for path in paths:
        path.unlink()
    return sample, emptiness


def _explain(funnel: Funnel) -> str:
    return nothing_left(funnel.counts, funnel.tallies)


def _keep(tree: Any, path: str) -> None:
    write_json(Path(path), tree)


def _first_documents(config: TextPipelineConfig, portions: Sequence[Portion]) -> Iterator[str]:
    """Clean text from the beginning of the largest portion."""
    largest = max(portions, key=lambda portion: portion.bytes)
    read = read_portion(largest, format=config.corpus.name, config=config.corpus.config)
    clean = normalise.normalise(
        next(read),
        unicode=config.normalise.unicode,
        control_characters=config.normalise.control_characters,
    )
    texts = clean.documents.column("text").slice(0, CHECKED_DOCUMENTS)
    yield from texts.cast(pa.large_string()).to_pylist()
