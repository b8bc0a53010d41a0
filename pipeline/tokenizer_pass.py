"""The tokenizer of a build: loaded, or made from the corpus in a first pass; proven before use."""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline import normalise
from pipeline.config import TextPipelineConfig
from pipeline.corpus import Portion
from pipeline.encoder import check_encoder, load_encoder
from pipeline.exclude import read_table
from pipeline.fingerprints import reading_fingerprint
from pipeline.funnel import add_funnels, nothing_left
from pipeline.listing import listing_of, read_listing
from pipeline.manifest import Tokenizer
from pipeline.progress import ProgressDisplay
from pipeline.read import read_portion
from pipeline.runner import Engine, run_beam
from pipeline.sample import CollectCharacters, Collector, SampleDocuments
from pipeline.sample_files import KeepSamples, is_whole, read_funnel, sample_path
from pipeline.shared_work import bring
from pipeline.stage_seconds import add_seconds
from pipeline.stages import ReadDocuments, spread_order
from pipeline.tokenizer import (
    characters_tokenizer,
    describe_tokenizer,
    read_tokenizer,
    train_tokenizer,
    write_tokenizer,
)
from pipeline.work import WorkFolder

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
        shutil.rmtree(work.samples, ignore_errors=True)
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
    folder = work.samples / reading_fingerprint(config, portions)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    bring(work, folder)
    paths = [sample_path(folder, portion.index) for portion in portions]
    left = [one for one, path in zip(portions, paths, strict=True) if not is_whole(path)]
    total_bytes = sum(portion.bytes for portion in portions)
    with ProgressDisplay(work, left, "making the tokenizer"):
        if left:
            _read(config, left, total_bytes, engine, work, folder)
            bring(work, folder)
        kept = _collector(config, "", total_bytes).of_corpus(map(read_table, paths))
        if not kept:
            funnel = add_funnels(map(read_funnel, paths))
            raise ValueError(nothing_left(funnel.counts, funnel.tallies))
        return _make(config, kept, work)


def _make(config: TextPipelineConfig, kept: Any, work: WorkFolder) -> str:
    named = config.tokenizer
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
    total_bytes: int,
    engine: Engine,
    work: WorkFolder,
    folder: Path,
) -> None:
    """Have Beam's workers leave the files of portions in a folder that they share."""
    ordered = spread_order(portions, engine.num_workers)
    with listing_of(work, ordered) as listing:
        construct = partial(
            read_for_tokenizer,
            config=config,
            listing=listing,
            total_bytes=total_bytes,
            work=work,
            folder=folder,
            in_order=engine.spills,
        )
        found = run_beam(construct, engine, work.error_log)
    add_seconds(work, found)


def read_for_tokenizer(
    pipeline: beam.Pipeline,
    *,
    config: TextPipelineConfig,
    listing: str,
    total_bytes: int,
    work: WorkFolder,
    folder: Path,
    in_order: bool,
) -> None:
    """Construct the first pass; its job is of the same size for a corpus of any size.

    Args:
        pipeline: is added to.
        config: of the build.
        listing: place of the listing of the portions that are left.
        total_bytes: of all portions.
        work: of the build.
        folder: for what each portion leaves.
        in_order: batches of a portion come one behind another.
    """
    collector = _collector(config, listing, total_bytes)
    documents = pipeline | "ReadDocuments" >> ReadDocuments(config, listing, work)
    _ = documents | "KeepSamples" >> KeepSamples(collector, work, folder, in_order)


def _collector(config: TextPipelineConfig, listing: str, total_bytes: int) -> Collector:
    if config.tokenizer.kind == "characters":
        return CollectCharacters()
    assert config.tokenizer.sample_mib is not None
    return SampleDocuments(
        sample_bytes=config.tokenizer.sample_mib * 2**20,
        portion_bytes=partial(_portion_bytes, listing),
        total_bytes=total_bytes,
        seed=config.shuffle_seed,
    )


def _portion_bytes(listing: str, portion: int) -> int:
    return _sizes(listing)[portion]


@lru_cache(maxsize=2)
def _sizes(listing: str) -> dict[int, int]:
    """Once in each worker: its batches name their portion, not its size."""
    return {portion.index: portion.bytes for _, portion in read_listing(listing)}


def _first_documents(config: TextPipelineConfig, portions: Sequence[Portion]) -> Iterator[str]:
    """Clean, filtered text from the beginning of the largest portion."""
    largest = max(portions, key=lambda portion: portion.bytes)
    read = read_portion(largest, format=config.corpus.name, config=config.corpus.config)
    clean = normalise.normalise(
        next(read),
        unicode=config.normalise.unicode,
        control_characters=config.normalise.control_characters,
    )
    if config.quality.enabled:  # what is rejected need not be encoded
        clean = config.quality.apply(clean)
    texts = clean.documents.column("text").slice(0, CHECKED_DOCUMENTS)
    yield from texts.cast(pa.large_string()).to_pylist()
