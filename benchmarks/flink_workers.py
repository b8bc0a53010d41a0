"""A build on Flink with one worker and with two, of text and of images.

    python benchmarks/flink_workers.py --novels NOVELS_DIR --photos PHOTOS_DIR

One job manager and two task managers of a slot each, each with a worker pool in a network
namespace of its own, as in `make cluster-test`, whose needs these are: root, Java, Maven.
`--parallelism` is all that differs; builds alternate, the first of each kind is thrown away (code
is compiled, jars are staged), and the tars must be those of the local runner.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepare import ROOT
from workers import image_build, parse, sha256, text_build, worker_parser

sys.path.insert(0, str(ROOT))
from tests.cluster.engines import Flink
from tests.cluster.services import Daemons

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    parser = worker_parser(__doc__, repeat=16)
    parser.add_argument("--heap-mib", type=int, default=1024, help="of a task manager, for tasks")
    parser.add_argument("--direct-mib", type=int, default=2048, help="of it, outside of the heap")
    arguments = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        work, daemons, flink = Path(folder), Daemons(), None
        (work / "cluster").mkdir()
        try:
            flink = Flink(
                daemons, work / "cluster", ENVIRONMENT, arguments.heap_mib, arguments.direct_mib
            )
            for what, make, source in (
                ("text", text_build, arguments.novels),
                ("images", image_build, arguments.photos),
            ):
                if source:
                    words = make(source, work, arguments.repeat)
                    tell(what, *compare(words, work / what, flink, arguments.rounds))
        finally:
            daemons.stop()
            if flink:
                flink.stop()


def compare(
    words: list[str], work: Path, flink: Flink, rounds: int
) -> tuple[dict[int, list[float]], float]:
    """Seconds of each build, by the number of workers, and MB of corpus."""
    local = build(words, work / "local", "num_workers=1")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds + 1):
        for workers, found in seconds.items():
            flags = [flag for flag in flink.flags() if not flag.startswith("--parallelism")]
            dataset_dir = work / f"{number}-{workers}"
            report = build(words, dataset_dir, *flags, f"--parallelism={workers}")
            assert tars(dataset_dir) == tars(work / "local"), "Flink made other bytes"
            subprocess.run(["rm", "-r", dataset_dir], check=True)  # noqa: S603, S607
            if number:
                found.append(report["seconds"])
    return seconds, local["corpus"]["bytes"] / 1e6


def build(words: list[str], dataset_dir: Path, *rest: str) -> dict:
    subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pipeline", *words, f"dataset_dir={dataset_dir}", *rest],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    time.sleep(1)  # Flink frees its slots
    return json.loads((dataset_dir / "report.json").read_text())


def tars(dataset_dir: Path) -> list[str]:
    return [sha256(path) for path in sorted(dataset_dir.glob("*.tar"))]


def tell(what: str, seconds: dict[int, list[float]], megabytes: float) -> None:
    one, two = (statistics.median(found) for found in seconds.values())
    print(f"{what}: {megabytes:.0f} MB, medians of {len(seconds[1])}, the tars of the local runner")
    print(f"  build on Flink        {one:8.1f} s{two:8.1f} s   ratio {one / two:.2f}", flush=True)


if __name__ == "__main__":
    main()
