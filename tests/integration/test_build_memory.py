"""The memory of a build is bounded by its batches, and not by the size of a portion."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest

MORE_MIB = 150
"""So much more memory may ten times the records take; all of them held would be 800 MiB."""
BUILD = """
import sys
from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
build(load(PipelineConfig, None, sys.argv[1:]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])
"""
"""The peak of its own: what `getrusage` tells of a child begins with that of its parent."""


@pytest.mark.slow
def test_rejects_of_a_compressed_file_take_no_memory(corpus, tmp_path):
    peaks = []
    for records in (30_000, 300_000):
        path = tmp_path / f"{records}.jsonl.zst"
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            for number in range(records):  # of two words, which the quality filter drops
                file.write(json.dumps({"text": f"{number} {'e' * 300}"}).encode() + b"\n")
        words = [
            f"dataset_dir={tmp_path / str(records)}",
            f"corpus.path=[{path},{corpus / 'a.jsonl'}]",
            "corpus.format=jsonl",
            "num_workers=1",
            "tokenizer.kind=characters",
        ]
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", BUILD, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + MORE_MIB, peaks
