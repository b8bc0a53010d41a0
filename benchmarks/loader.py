"""Speed of the loader: tokens per second on one core, and the first batch anywhere in 10^9 samples.

    python -m benchmarks.loader

Both datasets are synthetic and made in a temporary folder: random tokens in the project's format,
and a manifest of 10^9 sequences whose 10,000 shards are links to one real shard.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.blocks import cut_blocks
from pipeline.manifest import Manifest, Shard, Tokenizer, write_manifest
from pipeline.tar import write_shard
from training.data.config import TextDataConfig, open_tokens
from training.data.loader import Loader
from training.data.shards import load_manifest
from training.tasks import causal_lm

VOCAB_SIZE = 50_000
DOCUMENT_TOKENS = 1000
"""Mean length of a document."""
SAMPLES = 10**9
CHUNKS = 640_000
"""As of 2 TB of tokens: 1.6 million of them, 3.2 MB, in a chunk."""
SHARDS = 10_000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256, help="of the real dataset, millions")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most, for each row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # the loader's threads inherit it
    print(f"one core, {cpu_name()}, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        print_speeds(Path(folder), arguments.tokens * 10**6, arguments.seconds)
    with tempfile.TemporaryDirectory() as folder:
        print_starts(Path(folder))


def print_speeds(folder: Path, num_tokens: int, seconds: float) -> None:
    """Tokens per second in training order; each row begins with chunks not yet verified."""
    print(
        f"\n{num_tokens / 1e6:.0f} million tokens, page cache warm, checksums included, int64 out"
    )
    print(f"{'':33}{'million tokens per second':>26}")
    print(f"{'length':>7}{'batch':>7}{'micro':>7}  {'documents':<10}{'of clock':>13}{'of CPU':>13}")
    num_shards = max(1, num_tokens // 2**26)
    shards = [random_shard(folder, n, num_tokens // num_shards) for n in range(num_shards)]
    write_manifest(manifest_of(shards), folder)
    cases = [(1024, 512, 32), (64, 8192, 512), (64, 12, 12)]
    for length, global_batch_size, micro_batch_size in cases:
        for masked in (False, True):
            tokens, clock, cpu = measure(
                folder,
                length=length,
                global_batch_size=global_batch_size,
                micro_batch_size=micro_batch_size,
                masked=masked,
                seconds=seconds,
            )
            name = "masked" if masked else "ignored"
            sizes = f"{length:>7}{global_batch_size:>7}{micro_batch_size:>7}"
            print(f"{sizes}  {name:<10}{tokens / clock / 1e6:>13.1f}{tokens / cpu / 1e6:>13.1f}")


def measure(
    folder: Path,
    *,
    length: int,
    global_batch_size: int,
    micro_batch_size: int,
    masked: bool,
    seconds: float,
) -> tuple[int, float, float]:
    """Tokens, and seconds of the clock and of the CPU, of at most one epoch."""
    config = TextDataConfig(dataset_dir=str(folder), sequence_length=length)
    dataset = open_tokens(config, load_manifest(config.dataset_dir), split="train")
    num_tokens, started, started_cpu = 0, time.perf_counter(), time.process_time()
    with Loader(
        dataset,
        collate=collate(masked=masked),
        samples_seen=0,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=0,
        world_size=1,
    ) as loader:
        for _ in range(len(dataset) // global_batch_size):
            num_tokens += sum(batch["targets"].numel() for batch in next(loader))
            if time.perf_counter() - started > seconds:
                break
        clock, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    dataset.close()
    return num_tokens, clock, cpu


def print_starts(folder: Path) -> None:
    """Seconds from nothing to the first batch, at positions all over the dataset."""
    length = 1024
    link_shards(folder, length)
    size = (folder / "manifest.json").stat().st_size / 2**20
    print(
        f"\n{SAMPLES:,} sequences in {CHUNKS:,} chunks of {SHARDS:,} shards, batch 512 x {length}"
    )
    started = time.perf_counter()
    manifest = load_manifest(str(folder))
    print(
        f"manifest.json of {size:.0f} MiB read and checked: {time.perf_counter() - started:.2f} s"
    )
    print(f"{'position':>15}{'open, s':>10}{'batch, s':>10}{'together, s':>13}")
    config = TextDataConfig(dataset_dir=str(folder), sequence_length=length)
    for position in [0, 1, *random_positions(), 7 * SAMPLES + 12_345]:
        started = time.perf_counter()
        dataset = open_tokens(config, manifest, split="train")
        opened = time.perf_counter()
        with Loader(
            dataset,
            collate=collate(masked=True),
            samples_seen=position,
            global_batch_size=512,
            micro_batch_size=512,
            rank=0,
            world_size=1,
        ) as loader:
            next(loader)
            done = time.perf_counter()
        dataset.close()
        times = f"{opened - started:>10.2f}{done - opened:>10.2f}{done - started:>13.2f}"
        print(f"{position:>15,}{times}")


def collate(*, masked: bool) -> Callable[[Any], dict[str, torch.Tensor]]:
    """What a language model trains on."""
    config = causal_lm.Config(mask_documents=masked)
    return causal_lm.Task(config, vocab_size=VOCAB_SIZE, end_of_document=0).collate


def random_positions() -> list[int]:
    return sorted(np.random.default_rng(0).integers(0, SAMPLES, 5).tolist())


def link_shards(folder: Path, length: int) -> None:
    """A shard of 64 chunks under 10,000 names, as many sequences as `SAMPLES`."""
    chunks_per_shard, per_chunk = CHUNKS // SHARDS, -(-SAMPLES // CHUNKS)
    shard = random_shard(folder, 0, chunks_per_shard * (per_chunk * length + 1), chunks_per_shard)
    names = [f"train-{number:06d}.tar" for number in range(SHARDS)]
    for name in names[1:]:
        (folder / name).symlink_to(shard.name)
    write_manifest(manifest_of([replace(shard, name=name) for name in names]), folder)


def random_shard(folder: Path, number: int, num_tokens: int, num_chunks: int = 0) -> Shard:
    """A shard of random tokens; of `num_chunks` samples with a chunk each, or of usual ones."""
    random = np.random.default_rng(number)
    tokens = random.integers(0, VOCAB_SIZE, num_tokens, np.uint16)
    starts = np.flatnonzero(random.random(num_tokens, np.float32) < 1 / DOCUMENT_TOKENS)
    name = f"train-{number:06d}"
    samples: Iterator[Any] = cut_blocks(
        name,
        tokens,
        starts,
        ["0" * 32] * len(starts),
        block_tokens=num_tokens // num_chunks if num_chunks else 2**18,
    )
    sizes = {"chunk_bytes": 1} if num_chunks else {}
    return write_shard(folder / f"{name}.tar", samples, **sizes)


def manifest_of(shards: list[Shard]) -> Manifest:
    return Manifest(
        kind="text",
        splits={"train": tuple(shards)},
        config={},
        libraries={},
        tokenizer=Tokenizer("tokenizer.json", "0" * 64, VOCAB_SIZE, 0),
        token_dtype="uint16",
    )


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
