"""The driver of a build: tokenizer, the Beam pipeline, publication; every phase is resumable.

What a killed build has finished lies in `DATASET/.work`, or where the dataset is in a store there
and in a scratch folder, and is taken up by the next run of the same command;
`DATASET/manifest.json` is written last.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam

from pipeline import text
from pipeline.config import PipelineConfig, TextPipelineConfig, byte_config
from pipeline.corpus import Portion, plan_portions
from pipeline.decide import Terms, decide, records_hash
from pipeline.destination import Destination, check_apart, destination_of
from pipeline.engine_flags import check_places, complete_flags
from pipeline.fingerprints import library_versions, portion_fingerprints, request_fingerprint
from pipeline.job_server import check_job_server
from pipeline.kind import Kind
from pipeline.leaks import note_leaks
from pipeline.listing import listing_of
from pipeline.lock import DatasetLock
from pipeline.manifest import hash_config
from pipeline.plan import partition_bits
from pipeline.portions import place, read_record, spills_are_whole
from pipeline.progress import ProgressDisplay
from pipeline.publish import Building, already_published, publish
from pipeline.runner import Engine, StageError, fork_server_of, run_beam, uses_local_runner
from pipeline.shards import ShardSettings
from pipeline.shared_work import bring
from pipeline.space import check_free_space, full_disk_advice
from pipeline.split import marked_schema
from pipeline.stage_seconds import add_seconds
from pipeline.stages import BuildShards, spread_order
from pipeline.work import WorkFolder, read_json
from pipeline.worker_versions import are_elsewhere, check_workers

WORKER_BYTES = 32 * 2**20
"""A worker process starts in 3 to 5 s, in which another one reads about so much."""


def build(
    config: PipelineConfig, flags: Sequence[str] = (), *, spills: bool | None = None
) -> Path | str:
    """Build the dataset of a config, or finish it; returns its folder or URL.

    Args:
        config: what to build.
        flags: for Beam, unchanged; without a `--runner` the build runs on this machine.
        spills: how documents reach their shard; by default what suits the runner.

    Raises:
        ValueError, OSError: the corpus, the folder, the store or the config do not allow it.
        StageError: a stage failed; what is finished is kept.
    """
    started = time.monotonic()
    destination = destination_of(config)
    check_apart(destination, config.corpus.config.path)
    flags = complete_flags(flags, num_workers=config.num_workers)
    corpus = config.corpus.config
    places = {"corpus.path": corpus.path, "corpus.class_names": corpus.resources}
    check_places(flags, {"dataset_dir": (config.dataset_dir,), **places})
    check_job_server(flags)
    with fork_server_of(config.num_workers or num_cores(), flags) as fork_server:
        portions = plan_portions(config.corpus.module, config.corpus.config)
        num_workers = config.num_workers or sensible_workers(
            portions, config.corpus.config.work_factor
        )
        if fork_server and num_workers == 1:
            fork_server.close()  # nobody waits for its imports
        engine = Engine(
            num_workers=num_workers,
            flags=flags,
            spills=uses_local_runner(flags) if spills is None else spills,
            fork_server=fork_server if num_workers > 1 else None,
        )
        _finish(config, portions, engine, destination, started)
    return destination.name


def _finish(
    config: PipelineConfig,
    portions: list[Portion],
    engine: Engine,
    destination: Destination,
    started: float,
) -> None:
    """Build and publish, unless that very dataset is there."""
    request = request_fingerprint(config, portions)
    try:
        with DatasetLock(destination.folder):
            if already_published(destination, request=request, config=byte_config(config)):
                told = "complete already, of this config and corpus"
                sys.stdout.write(f"{destination.name}: {told}\n")
            else:
                destination.claim(request)
                building = _build(config, portions, engine, destination)
                publish(replace(building, request=request, started=started), destination)
    finally:
        destination.leave()


def _build(
    config: PipelineConfig, portions: list[Portion], engine: Engine, destination: Destination
) -> Building:
    """All but publication."""
    work = destination.work
    if work.store and not engine.spills:
        work = work.between_machines()
    work.create()
    bring(work, work.comparison, work.leaks)
    check_free_space(destination.folder, portions, growth=destination.growth(config))
    try:
        if are_elsewhere(engine.flags):
            run = partial(run_beam, engine=engine, error_log=work.error_log)
            check_workers(run, library_versions(config), engine.flags)
        return _build_shards(config, portions, engine, work)
    except StageError as error:
        advice = full_disk_advice(str(error))
        raise StageError(f"{error}{advice} (traceback: {work.error_log})") from None


def sensible_workers(portions: Sequence[Portion], work_factor: int = 1) -> int:
    """One per core, but none that would have nothing to do or would cost more than it does."""
    busy = 1 + work_factor * sum(portion.bytes for portion in portions) // WORKER_BYTES
    return max(1, min(num_cores(), len(portions), busy))


def num_cores() -> int:
    """Of this machine, those that this process may use."""
    return len(os.sched_getaffinity(0))


def _build_shards(
    config: PipelineConfig, portions: list[Portion], engine: Engine, work: WorkFolder
) -> Building:
    """What the kind needs first, then all shards finished in the work folder."""
    kind = _prepare(config, portions, engine, work)
    terms, settings = _settle(config, portions, kind, work)
    fingerprints = portion_fingerprints(config, portions, terms.placement, kind.fingerprint)
    terms = replace(terms, records=records_hash(fingerprints.values()))
    run = partial(_run, portions, fingerprints, engine, kind, terms, settings)
    run()
    decision = decide(terms)
    if note_leaks(work, decision.plan):
        run()
        decision = decide(terms)
    return Building(config, portions, work, kind, decision)


def _run(
    portions: list[Portion],
    fingerprints: dict[int, str],
    engine: Engine,
    kind: Kind,
    terms: Terms,
    settings: ShardSettings,
) -> None:
    """Whatever is not finished yet."""
    work, compare = terms.work, None
    if (read_json(work.comparison) or {}).get("records") != terms.records:
        compare = kind.compare(work, len(portions), terms.records)
    schema = marked_schema(kind.schema, terms.validation_paths)
    unfinished = _unfinished(portions, fingerprints, work, spills=engine.spills)
    ordered = spread_order(unfinished, engine.num_workers)

    def construct(pipeline: beam.Pipeline, listing: str) -> None:
        _ = (
            pipeline
            | "EncodedDocuments" >> kind.encoded(listing, work)
            | "BuildShards" >> BuildShards(listing, terms, settings, schema, engine.spills, compare)
        )

    with (
        ProgressDisplay(work, unfinished, "reading"),
        listing_of(work, ordered, fingerprints) as listing,
    ):
        found = run_beam(partial(construct, listing=listing), engine, work.error_log)
    bring(work, work.rejects, work.shards, work.comparison)
    add_seconds(work, found)


def _prepare(
    config: PipelineConfig, portions: Sequence[Portion], engine: Engine, work: WorkFolder
) -> Kind:
    if isinstance(config, TextPipelineConfig):
        return text.prepare(config, portions, engine, work)
    from pipeline.images.build import ImageKind  # a text build needs no Pillow
    from pipeline.images.config import ImagePipelineConfig

    assert isinstance(config, ImagePipelineConfig), config.kind
    return ImageKind(config, work)


def _settle(
    config: PipelineConfig, portions: Sequence[Portion], kind: Kind, work: WorkFolder
) -> tuple[Terms, ShardSettings]:
    """The numbers that decide places and bytes."""
    target_bytes = int(config.shards.target_mib * 2**20)
    bits = partition_bits(sum(portion.bytes for portion in portions), target_bytes)
    terms = Terms(
        work=work,
        placement=place(config.split, shuffle_seed=config.shuffle_seed, partition_bits=bits),
        num_portions=len(portions),
        corpus_bytes=sum({file.url: file.bytes for one in portions for file in one.files}.values()),
        target_weight=kind.target_weight(target_bytes),
        max_bad_fraction=config.max_bad_fraction,
        config_hash=hash_config(byte_config(config)),
        validation_paths=config.split.validation_paths,
        compares=kind.compare(work, len(portions)) is not None,
    )
    settings = ShardSettings(
        cutter=kind.cutter,
        chunk_bytes=int(config.shards.chunk_mib * 2**20),
        deduplicate=config.deduplicate,
        split_seed=config.split.seed,
        compares=terms.compares,
    )
    return terms, settings


def _unfinished(
    portions: Sequence[Portion], fingerprints: dict[int, str], work: WorkFolder, *, spills: bool
) -> list[Portion]:
    """The portions without a valid completion record; only spill files outlive a build."""
    left = []
    for portion in portions:
        record = read_record(work.portion(portion.index)) if spills else None
        if (
            record is None
            or record.fingerprint != fingerprints[portion.index]
            or not spills_are_whole(record, work)
        ):
            work.portion(portion.index).unlink(missing_ok=True)
            left.append(portion)
    return left
