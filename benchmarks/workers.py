"""One worker and two: how much faster a local build is, of text and of images, with CPU seconds.

    python benchmarks/workers.py --novels NOVELS_DIR --photos PHOTOS_DIR

Start and end of a build are one process's, some 3 s: give it minutes of work (`--repeat 192`).
Novels are repeated with a number in front of each document, so that none is a duplicate; photos are
read so often by links to them, with deduplication off. Builds of one worker and two alternate, and
the tars must be the same. Other processes of the machine count in: two workers need two idle cores.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepare import ROOT, cut, train, write_jsonl

Row = dict[str, float]


def main() -> None:
    arguments = parse(worker_parser(__doc__, repeat=8))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.novels:
            tell(
                "text",
                compare(text_build(arguments.novels, work, arguments.repeat), work, arguments),
            )
        if arguments.photos:
            tell(
                "images",
                compare(image_build(arguments.photos, work, arguments.repeat), work, arguments),
            )


def worker_parser(doc: str, *, repeat: int) -> argparse.ArgumentParser:
    """What both benchmarks of one worker and two ask for."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--novels", type=Path, help="folder of .txt files")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--repeat", type=int, default=repeat, help="times that each is read")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    arguments = parser.parse_args()
    if not (arguments.novels or arguments.photos):
        parser.error("give --novels, --photos or both")
    return arguments


def text_build(novels: Path, work: Path, repeat: int) -> list[str]:
    once = work / "once.jsonl"
    write_jsonl(novels, once)
    tokenizer = train(once, work, 32_000)
    texts = [
        text for path in sorted(novels.glob("*.txt")) for text in cut(path.read_text("utf-8-sig"))
    ]
    with (work / "novels.jsonl").open("w", encoding="utf-8") as file:
        for number in range(repeat):
            for text in texts:
                file.write(json.dumps({"text": f"{number}. {text}"}, ensure_ascii=False) + "\n")
    return [
        *(
            "configs/pipeline/jsonl.yaml",
            f"corpus.path=[{work}/novels.jsonl]",
            "tokenizer.kind=load",
        ),
        f"tokenizer.path={tokenizer}",
    ]


def image_build(photos: Path, work: Path, repeat: int) -> list[str]:
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"error: --photos: {photos} holds no .jpg or .jpeg")
    for number in range(repeat):
        (work / f"photos/{number}").mkdir(parents=True)
        for path in paths:
            (work / f"photos/{number}/{path.name}").symlink_to(path.resolve())
    return [
        *("configs/pipeline/image_folder.yaml", f"corpus.path=[{work}/photos]"),
        *("deduplicate=false", "images.resize.size=256", "corpus.portion_mib=8"),
    ]


def compare(words: list[str], work: Path, arguments: argparse.Namespace) -> dict[int, list[Row]]:
    rows: dict[int, list[Row]] = {1: [], 2: []}
    tars = set()
    for number in range(arguments.rounds):
        for workers, found in rows.items():
            dataset_dir = work / f"d{number}-{workers}-{len(words)}"
            found.append(build(words, dataset_dir, workers))
            tars.add(tuple(map(sha256, sorted(dataset_dir.glob("*.tar")))))
            subprocess.run(["rm", "-r", dataset_dir], check=True)  # noqa: S603, S607
    assert len(tars) == 1, "one worker and two made other bytes"
    return rows


def build(words: list[str], dataset_dir: Path, workers: int) -> Row:
    """Seconds of the command, of the build as its report says, and of all CPUs."""
    command = [sys.executable, "-m", "pipeline", *words, f"dataset_dir={dataset_dir}"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(  # noqa: S603
        [*command, f"num_workers={workers}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = json.loads((dataset_dir / "report.json").read_text())
    megabytes = report["corpus"]["bytes"] / 1e6
    return {"command": seconds, "build": report["seconds"], "cpu": cpu, "megabytes": megabytes}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tell(what: str, rows: dict[int, list[Row]]) -> None:
    middle = {
        workers: {key: statistics.median(row[key] for row in found) for key in found[0]}
        for workers, found in rows.items()
    }
    print(f"{what}: {middle[1]['megabytes']:.0f} MB, medians of {len(rows[1])}, the same tars")
    for key, name in (("command", "command"), ("build", "build"), ("cpu", "CPU of all processes")):
        one, two = middle[1][key], middle[2][key]
        print(f"  {name:22}{one:8.1f} s{two:8.1f} s   ratio {one / two:.2f}")


if __name__ == "__main__":
    main()
