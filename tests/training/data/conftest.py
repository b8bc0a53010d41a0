"""Tiny text datasets in the project's format, written with webdataset's own TarWriter."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.manifest import Chunks, Manifest, Shard, Tokenizer, write_manifest


@pytest.fixture(scope="session")
def write_dataset():
    return _write_dataset


def _write_dataset(
    dataset_dir, shards, *, dtype="uint16", samples_per_chunk=2, split="train", seed=0
):
    """Write shards given as lists of block lengths; returns the manifest and each chunk's stream.

    Streams are `(tokens, document_starts)`; tokens are random, so a wrong offset shows.
    """
    dataset_dir = Path(dataset_dir)
    random = np.random.default_rng(seed)
    rows, streams = [], []
    for number, lengths in enumerate(shards):
        name = f"{split}-{number:06d}"
        blocks = [_block(random, length, dtype) for length in lengths]
        path = dataset_dir / f"{name}.tar"
        _write_tar(path, name, blocks)
        rows.append(_shard(path, lengths, samples_per_chunk))
        for first in range(0, len(blocks), samples_per_chunk):
            streams.append(_stream(blocks[first : first + samples_per_chunk]))
    manifest = Manifest(
        kind="text",
        splits={split: tuple(rows)},
        config={},
        libraries={},
        tokenizer=Tokenizer("tokenizer.json", "0" * 64, 50000, 0),
        token_dtype=dtype,
    )
    write_manifest(manifest, dataset_dir)
    return manifest, streams


def _block(random, length, dtype):
    tokens = random.integers(0, 50000, length).astype(dtype)
    docs = np.flatnonzero(random.random(length) < 0.15).astype(np.uint32)
    return tokens, docs


def _stream(blocks):
    starts = np.cumsum([0] + [len(tokens) for tokens, _ in blocks])
    docs = [docs.astype(np.int64) + start for (_, docs), start in zip(blocks, starts, strict=False)]
    return np.concatenate([tokens for tokens, _ in blocks]), np.concatenate(docs)


def _write_tar(path, name, blocks):
    with webdataset.TarWriter(str(path), mtime=0) as writer:
        for number, (tokens, docs) in enumerate(blocks):
            writer.write(
                {
                    "__key__": f"{name}-{number:06d}",
                    "tokens.npy": _npy(tokens),
                    "docs.npy": _npy(docs),
                    "json": json.dumps({"documents": [], "tokens": len(tokens)}),
                }
            )


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _shard(path, lengths, samples_per_chunk):
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        end = tar.offset  # behind the padding of the last member
    firsts = list(range(0, len(lengths), samples_per_chunk))
    bounds = [members[3 * first].offset for first in firsts] + [end]
    groups = [lengths[first : first + samples_per_chunk] for first in firsts]
    spans = list(zip(bounds, bounds[1:], strict=False))
    chunks = Chunks(
        first_sample=tuple(firsts),
        start=tuple(start for start, _ in spans),
        stop=tuple(stop for _, stop in spans),
        samples=tuple(map(len, groups)),
        tokens=tuple(map(sum, groups)),
        crc32=tuple(zlib.crc32(content[start:stop]) for start, stop in spans),
    )
    sha256 = hashlib.sha256(content).hexdigest()
    return Shard(path.name, len(content), len(lengths), sum(lengths), sha256, chunks)
