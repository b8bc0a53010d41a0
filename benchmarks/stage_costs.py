"""What each stage of a build costs one core, and what a document weighs in each shuffle.

    python benchmarks/stage_costs.py --novels NOVELS_DIR --photos PHOTOS_DIR

Stages are called one after another on the batches of a corpus, without Beam, in CPU seconds, which
other processes of the machine change little. `benchmarks/scaling.py` holds what it printed.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.coders import FastPrimitivesCoder
from workers import image_build, text_build

import configs
from pipeline import build, corpus
from pipeline.batch import Batch
from pipeline.config import PipelineConfig, TextPipelineConfig
from pipeline.corpus import Portion, plan_portions
from pipeline.decide import Terms, decide
from pipeline.encode import encode_documents
from pipeline.encoder import load_encoder
from pipeline.exclude import EXCLUDED, write_table
from pipeline.images.appearance import SIDE, Appearance
from pipeline.images.clusters import Config as NearDuplicates
from pipeline.images.clusters import find_clusters, row_pairs, sketch_rows, wanted_hashes
from pipeline.images.hash_pairs import HashPairs
from pipeline.images.near_duplicates import compare_hashes
from pipeline.images.process import process
from pipeline.images.stages import pack_images, process_images
from pipeline.key import add_keys, drop_copies
from pipeline.normalise import normalise
from pipeline.plan import MAX_PARTITION_BITS, PlannedShard, ShardPlan, write_plan
from pipeline.portions import PortionSums
from pipeline.read import read_portion
from pipeline.runner import Engine
from pipeline.shards import write_planned
from pipeline.shuffle import cut_by_shard
from pipeline.spills import ShuffledDocuments
from pipeline.split import TRAIN
from pipeline.work import WorkFolder

SHARDS = 16_384
"""Of the plan by which documents are cut: 4 TB of them."""
PORTION_BYTES = 64 * 2**20
RECORDS = 100
"""Completion records that a plan is made of, copies of one."""
EXCLUDED_IMAGES = 1_000_000
HASHES = 200_000
"""Of images and of mirror images, in the group of near-duplicates that is compared."""
CLOSE = 2_000
"""Hashes that are all close to each other."""
TWINS = 20_000
"""Images that are verified by their thumbnails, each with one partner."""
CODER = FastPrimitivesCoder()

Step = tuple[str, Callable[[Batch], Batch]]
Sums = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--novels", type=Path, help="folder of .txt files")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--repeat", type=int, default=4, help="times that each is read")
    arguments = parser.parse_args()
    for make, folder in ((text_build, arguments.novels), (image_build, arguments.photos)):
        with tempfile.TemporaryDirectory() as temporary:
            if folder:
                measure(make(folder, Path(temporary), arguments.repeat), Path(temporary))
    if arguments.photos:
        with tempfile.TemporaryDirectory() as temporary:
            tell("near-duplicates", measure_near_duplicates(Path(temporary)))
    with tempfile.TemporaryDirectory() as temporary:
        row = Path(write_plan(even_plan(), Path(temporary))).stat().st_size / SHARDS
        tell("plan", {"bytes of a shard": row})


def measure(words: list[str], folder: Path) -> None:
    path, *overrides = words
    config = configs.load(PipelineConfig, path, [*overrides, f"dataset_dir={folder}/d"])
    corpus._portion_mib = lambda files, most: PORTION_BYTES >> 20  # as of a large corpus
    portions = plan_portions(config.corpus.module, config.corpus.config)
    work = WorkFolder(str(folder / "d/.work"))
    work.create()
    kind = build._prepare(config, portions, Engine(1, (), spills=True), work)
    terms, settings = build._settle(config, portions, kind, work)
    placement = replace(terms.placement, partition_bits=MAX_PARTITION_BITS)
    sizes: Sums = defaultdict(float)
    seconds: Sums = defaultdict(float)
    rows, portion, plan = [], PortionSums(placement), even_plan()
    for batch in run_steps(config, portions, steps_of(config, kind), seconds):
        sums = PortionSums(placement)
        with clock(seconds, "FinishPortions"):
            sums.add(batch)
            packed = CODER.encode(sums)
            CODER.decode(packed)
        sizes["batches"] += 1
        sizes["sums"] += len(packed)
        sizes["read"] += batch.read_bytes
        sizes["passed"] += batch.counts[-1].bytes_in
        sizes["held"] += len(CODER.encode(batch))
        if sizes["read"] < PORTION_BYTES:
            portion.merge(sums)
        with clock(seconds, "ShuffleDocuments"):
            encoded = [CODER.encode(row) for row in cut_by_shard(batch, plan, placement)]
            decoded = [CODER.decode(row)[1] for row in encoded]
        sizes["rows"] += sum(map(len, encoded))
        rows += decoded
    planned = PlannedShard("train-000000", TRAIN, 0, 2**MAX_PARTITION_BITS, 1, 0, "f")
    with clock(seconds, "WriteShards"):
        documents = ShuffledDocuments(rows, kind.schema)
        write_planned((planned, documents), work=work, settings=settings)
    sizes["shards"] = (work.shards / "train-000000.tar").stat().st_size
    sizes["record"], seconds["plan"] = plan_of(portion, replace(terms, placement=placement))
    tell(config.kind, rates(seconds, sizes, len(rows)))


def rates(seconds: Sums, sizes: Sums, documents: int) -> Sums:
    """MB of corpus per second of each stage, and bytes for each document, batch and portion."""
    took = {stage: sizes["read"] / 1e6 / seconds[stage] for stage in seconds if stage != "plan"}
    return {
        **took,
        "corpus bytes of a document": sizes["passed"] / documents,
        "batch, corpus bytes": sizes["read"] / sizes["batches"],
        "row in the shuffle": sizes["rows"] / documents,
        "held by the engine": sizes["held"] / documents,
        "in shards": sizes["shards"] / documents,
        "sums of a batch": sizes["sums"] / sizes["batches"],
        "completion record": sizes["record"],
        "plan, ms for a portion": 1000 * seconds["plan"],
    }


def steps_of(config: PipelineConfig, kind: Any) -> list[Step]:
    """The stages between the reader and the shuffle."""
    key = ("KeyDocuments", lambda batch: drop_copies(add_keys(batch)))
    if not isinstance(config, TextPipelineConfig):
        make = partial(process, config=config.images, look=True)
        every = partial(process_images, processed=lambda images: list(map(make, images)), look=True)
        return [("ProcessImages", every), ("KeyDocuments", add_keys), ("PackImages", pack_images)]
    clean = partial(
        normalise,
        unicode=config.normalise.unicode,
        control_characters=config.normalise.control_characters,
    )
    encoder = load_encoder(kind.tokenizer_text, end_of_document=config.tokenizer.end_of_document)
    encode = partial(encode_documents, encoder=encoder)
    quality = ("FilterQuality", config.quality.apply)
    return [("NormaliseText", clean), quality, key, ("EncodeDocuments", encode)]


def run_steps(
    config: PipelineConfig, portions: list[Portion], steps: list[Step], seconds: Sums
) -> Iterator[Batch]:
    """The batches of a corpus, behind all steps; the first one goes through them twice."""
    for portion in portions:
        batches = read_portion(portion, format=config.corpus.name, config=config.corpus.config)
        while True:
            with clock(seconds, "ReadCorpus"):
                batch = next(batches, None)
            if batch is None:
                break
            if not portion.index:  # kernels are compiled
                _through(batch, steps, defaultdict(float))
            yield _through(batch, steps, seconds)


def _through(batch: Batch, steps: list[Step], seconds: Sums) -> Batch:
    for stage, step in steps:
        with clock(seconds, stage):
            batch = step(batch)
    return batch


@contextmanager
def clock(seconds: Sums, stage: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[stage] += time.process_time() - started


def even_plan() -> ShardPlan:
    """A plan of many shards, all of training."""
    width = 2**MAX_PARTITION_BITS // SHARDS
    shards = [
        PlannedShard(f"train-{i:06d}", TRAIN, i * width, (i + 1) * width, 2**27, 0, "f" * 64)
        for i in range(SHARDS)
    ]
    return ShardPlan(MAX_PARTITION_BITS, 0, tuple(shards))


def plan_of(portion: PortionSums, terms: Terms) -> tuple[int, float]:
    """Bytes of a completion record, and seconds that the plan takes for each."""
    compares = bool(portion.sketches)
    portion.write(terms.work, 0, "f" * 64)
    content = terms.work.portion(0).read_bytes()
    for index in range(1, RECORDS):
        terms.work.portion(index).write_bytes(content)
    if compares:
        keys = np.sort(np.frombuffer(random_bytes(16 * EXCLUDED_IMAGES), "S16")).tobytes()
        column = pa.Array.from_buffers(pa.binary(16), EXCLUDED_IMAGES, [None, pa.py_buffer(keys)])
        words = pa.array(["near_duplicate"] * EXCLUDED_IMAGES)
        write_table(
            terms.work.excluded, pa.RecordBatch.from_arrays([column, words, words], schema=EXCLUDED)
        )
    seconds: Sums = defaultdict(float)
    with clock(seconds, "plan"):
        decide(replace(terms, num_portions=RECORDS, compares=compares))
    return len(content), seconds["plan"] / RECORDS


def measure_near_duplicates(folder: Path) -> Sums:
    """What comparing a group of hashes takes, and verifying images of which each has a partner."""
    seconds: Sums = defaultdict(float)
    spread = np.frombuffer(random_bytes(16 * HASHES), np.uint64).reshape(2, -1)
    group = [np.unique(hashes >> np.uint64(7) << np.uint64(7)) for hashes in spread]
    with clock(seconds, "compare"):
        compare_hashes(group[0], group[1], NearDuplicates().radius, 0)
    thumbnails = np.frombuffer(random_bytes(TWINS // 2 * SIDE * SIDE), np.uint8).reshape(
        -1, SIDE**2
    )
    own = [
        Appearance(int(value) ^ twin, 1, 1, thumbnail.tobytes()).pack()
        for twin in (0, 1)
        for value, thumbnail in zip(
            spread[0] >> np.uint64(1) << np.uint64(1), thumbnails, strict=False
        )
    ]
    raw = random_bytes(16 * TWINS)
    keys = pa.array([raw[16 * i : 16 * i + 16] for i in range(TWINS)], pa.binary(16))
    write_table(folder / "0.arrow", sketch_rows(keys, np.ones(TWINS, np.int64), own))
    plain = np.unique(spread[0][: TWINS // 2] >> np.uint64(1) << np.uint64(1))
    pairs = HashPairs(np.stack([plain, plain + np.uint64(1)], axis=1), np.empty((0, 2), np.uint64))
    with clock(seconds, "verify"):
        found = find_clusters([folder / "0.arrow"], pairs, NearDuplicates()).excluded()
    assert found.num_rows == TWINS // 2
    return {
        "compare, us for a hash": 1e6 * seconds["compare"] / (2 * HASHES),
        "verify, us for an image": 1e6 * seconds["verify"] / TWINS,
        "close pair, bytes at the peak": close_pair(folder),
        "sketch": (folder / "0.arrow").stat().st_size / TWINS,
        "excluded": found.nbytes / found.num_rows,
    }


def close_pair(folder: Path) -> float:
    """What the worker that makes clusters takes for each, where hashes are close to all others."""
    paths, hashes = [folder / f"pairs-{band}.arrow" for band in range(9)], np.arange(CLOSE)
    pairs = np.stack(np.triu_indices(CLOSE, 1), axis=1).astype(np.uint64)
    for path, part in zip(paths, np.array_split(pairs, len(paths)), strict=True):
        HashPairs(part, np.empty((0, 2), np.uint64)).write(path)
    rows = {value: [value] for value in hashes.tolist()}
    tracemalloc.start()
    found = HashPairs.joined(paths)
    assert len(wanted_hashes(found)) == CLOSE
    assert sum(map(len, row_pairs(found.plain, rows, rows))) == len(pairs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / len(pairs)


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


def tell(what: str, found: Sums) -> None:
    print(what)
    for name, value in found.items():
        print(f"  {name:32}{value:14,.1f}")


if __name__ == "__main__":
    main()
