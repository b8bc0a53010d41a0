"""Samples per second from a disk, from a store that is 30 ms away, and from the cache of the node.

    python -m benchmarks.object_store

The dataset is synthetic; the store is the tests' S3 server in a process of its own, which answers
each request so much later. Rows alternate; each is the median of its rounds, one epoch each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.loader import collate, cpu_name, manifest_of, random_shard
from pipeline.manifest import write_manifest
from tests.s3_server import S3Server
from training.data.config import TextDataConfig, open_tokens
from training.data.loader import Loader
from training.data.shards import load_manifest
from training.data.store import StoreConfig

LENGTH, BATCH = 1024, 64


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128, help="of the dataset, millions")
    parser.add_argument("--latency", type=float, default=0.03, help="of a request, seconds")
    parser.add_argument("--step", type=float, default=0.1, help="seconds that a step computes")
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bucket = folder / "buckets/bucket"
        bucket.mkdir(parents=True)
        shards = [random_shard(bucket, n, 2**26) for n in range(max(1, words.tokens * 10**6 >> 26))]
        write_manifest(manifest_of(shards), bucket)
        size = sum(shard.bytes for shard in shards) / 2**20
        print(
            f"{cpu_name()}, {os.cpu_count()} cores; {size:.0f} MiB, {len(shards[0].chunks)} chunks "
            f"a shard, sequences of {LENGTH}, global batch {BATCH}; a request takes "
            f"{1000 * words.latency:.0f} ms and more"
        )
        with serve(folder / "buckets", words.latency):
            print_table(measure_all(folder, bucket, words.step, words.rounds), words.step)


@contextmanager
def serve(folder: Path, latency: float) -> Iterator[None]:
    """A server for this process, and nothing else of S3."""
    command = [sys.executable, "-m", "tests.s3_server", str(folder), "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None
        os.environ |= S3Server.env_of(server.stdout.readline().strip())
        try:
            yield
        finally:
            server.terminate()


Row = tuple[float, float, float]
"""Samples per second with nothing to compute, the share of time that steps wait for data, and the
seconds before the first batch."""


def measure_all(folder: Path, bucket: Path, step: float, rounds: int) -> dict[str, Row]:
    """The rows by name, medians of their rounds."""
    near = TextDataConfig(dataset_dir=str(bucket), sequence_length=LENGTH, num_lanes=16)
    far = replace(near, dataset_dir="s3://bucket")
    found: dict[str, list[Row]] = {}
    for number in range(rounds):
        cached = replace(far, store=StoreConfig(cache_dir=str(folder / f"cache-{number}")))
        for name, config in (
            ("disk", near),
            ("store", far),
            ("store, cache empty", cached),
            ("store, cache full", cached),
        ):
            found.setdefault(name, []).append(measure(config, step, fresh=name.endswith("empty")))
    return {
        name: tuple(map(statistics.median, zip(*rows, strict=True)))  # type: ignore[misc]
        for name, rows in found.items()
    }


def measure(config: TextDataConfig, step: float, *, fresh: bool) -> Row:
    """One epoch as fast as it goes, and 100 steps that compute; of an empty cache but the first."""
    samples_per_second, first = run(config, 0.0)[::2]
    if fresh:
        other = replace(config.store, cache_dir=f"{config.store.cache_dir}-steps")
        config = replace(config, store=other)
    return samples_per_second, run(config, step, most=100)[1], first


def run(config: TextDataConfig, step: float, *, most: int = 10**9) -> Row:
    """Samples per second, the share of waiting behind the first batch, and seconds to that one."""
    started = time.perf_counter()
    dataset = open_tokens(config, load_manifest(config.dataset_dir), split="train")
    with Loader(
        dataset,
        collate=collate(masked=False),
        samples_seen=0,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        rank=0,
        world_size=1,
    ) as loader:
        next(loader)
        first, waited = time.perf_counter() - started, loader.wait_seconds
        num_steps = min(len(dataset) // BATCH - 1, most)
        for _ in range(num_steps):
            time.sleep(step)
            next(loader)
        clock = time.perf_counter() - started
    dataset.close()
    share = (loader.wait_seconds - waited) / (clock - first)
    return BATCH * (num_steps + 1) / clock, share, first


def print_table(rows: dict[str, Row], step: float) -> None:
    """A line for each place."""
    columns = ("samples/s", f"waiting, {1000 * step:.0f} ms steps", "first batch, s")
    print(f"{'':20}" + "".join(f"{column:>24}" for column in columns))
    for name, (speed, share, first) in rows.items():
        print(f"{name:20}{speed:>24,.0f}{share:>24.2%}{first:>24.2f}")


if __name__ == "__main__":
    main()
