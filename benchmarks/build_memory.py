"""Memory and time of a local build at three sizes of corpus, and beside a shuffle in memory.

    python benchmarks/build_memory.py --novels NOVELS_DIR --photos PHOTOS_DIR
    python benchmarks/build_memory.py --rejects 30000 300000 3000000

Rejects are short records of one compressed file, all but one of which the quality filter drops. One
worker, shards of 64 MiB. The peak is of the largest process of a build, mapped files included.
"in memory" is the same build with its documents in the GroupByKey of Beam's local runner, which is
what other pipelines do, in the place of spill files; the tars are the same.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from prepare import ROOT
from workers import image_build, sha256, text_build

SPILLS = {"spill files": True, "in memory": False}
BUILD = """
import sys
from configs.command import parse
from pipeline.build import build
from pipeline.config import PipelineConfig
config, flags = parse(PipelineConfig, sys.argv[2:], prog="build", doc="", passes_flags_on=True)
build(config, flags, spills=sys.argv[1] == "True")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--novels", type=Path, help="folder of .txt files")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--rejects", type=int, nargs="*", default=[], help="numbers of records")
    parser.add_argument("--repeats", type=int, nargs="+", default=[16, 32, 64])
    arguments = parser.parse_args()
    print(f"{'':14}{'corpus, MB':>12}{'shuffle':>14}{'peak, MiB':>12}{'seconds':>10}{'CPU':>8}")
    for name, words in (("novels", text_build), ("photos", image_build)):
        folder = getattr(arguments, name)
        for repeat in arguments.repeats if folder else ():
            with tempfile.TemporaryDirectory() as temporary:
                compare(name, words(folder, Path(temporary), repeat), Path(temporary))
    for records in arguments.rejects:
        with tempfile.TemporaryDirectory() as temporary:
            compare(f"{records:,}", rejects_build(Path(temporary), records), Path(temporary))


def compare(name: str, words: list[str], work: Path) -> None:
    """A row for each way to shuffle."""
    tars = set()
    for shuffle, spills in SPILLS.items():
        dataset_dir = work / shuffle.replace(" ", "-")
        megabytes, peak, seconds, cpu = build(words, dataset_dir, spills=spills)
        tars.add(tuple(map(sha256, sorted(dataset_dir.glob("*.tar")))))
        subprocess.run(["rm", "-r", dataset_dir], check=True)  # noqa: S603, S607
        print(
            f"{name:14}{megabytes:12,.0f}{shuffle:>14}{peak:12,.0f}{seconds:10.1f}{cpu:8.1f}",
            flush=True,
        )
    assert len(tars) == 1, "the ways to shuffle made other bytes"


def rejects_build(work: Path, records: int) -> list[str]:
    """A build of one document and of so many records of two words."""
    path, config = work / "rejects.jsonl.zst", work / "rejects.yaml"
    config.write_text(f"dataset_dir: {work}\ncorpus: {{format: jsonl, path: [{path}]}}\n")
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        text = "all that the rain and the river have left " * 9 + "dropped 0123456789"
        file.write(json.dumps({"text": text}).encode())
        for number in range(records):
            file.write(f'\n{{"text": "{number} dropped"}}'.encode())
    return [str(config), "tokenizer.kind=characters"]


def build(
    words: list[str], dataset_dir: Path, *, spills: bool
) -> tuple[float, float, float, float]:
    """MB of the corpus, MiB of the largest process, seconds, and CPU seconds of all processes."""
    command = [sys.executable, "-c", BUILD, str(spills), *words, f"dataset_dir={dataset_dir}"]
    command += ["num_workers=1", "shards.target_mib=64"]
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, "the build failed"
    seconds = time.perf_counter() - started
    return corpus_megabytes(dataset_dir), used.ru_maxrss / 1024, seconds, cpu_seconds(used)


def cpu_seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def corpus_megabytes(dataset_dir: Path) -> float:
    return float(json.loads((dataset_dir / "report.json").read_text())["corpus"]["bytes"]) / 1e6


if __name__ == "__main__":
    main()
