"""Flink and Spark on this machine, where Java and Maven are: builds are those of its own runner,
byte for byte.

A cluster of two workers each where network namespaces may be made, else the engine inside its job
server. Images on Spark, Prism, faults and other services are `make cluster-test`'s.
"""

import hashlib
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.cluster.engines import OPENS, Flink, Spark, fetch_jars, job_server_jar, started
from tests.cluster.network import may_make_namespaces

ROOT = Path(__file__).parent.parent.parent
CLUSTERS = {"flink": Flink, "spark": Spark}
ALONE = {
    "flink": ("org.apache.beam.runners.flink.FlinkJobServerDriver", "--flink_master=[local]"),
    "spark": ("org.apache.beam.runners.spark.SparkJobServerDriver", "--spark_master_url=local[2]"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The words of a build of text and of one of images."""
    photos = tmp_path_factory.mktemp("photos")
    for number in range(60):
        values = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = photos / f"{'cat' if number % 3 else 'dog'}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(values).resize((80, 60)).save(path)
    text = ["configs/pipeline/tiny_shakespeare.yaml", "deduplicate=true", "shards.target_mib=0.2"]
    images = ["configs/pipeline/image_folder.yaml", f"corpus.path=[{photos}]"]
    return {"text": text, "images": [*images, "images.resize.size=48", "shards.target_mib=0.05"]}


def build(words, dataset_dir, *flags, **variables):
    """Build, and hash what a dataset is."""
    command = [sys.executable, "-m", "pipeline", *words, f"dataset_dir={dataset_dir}", *flags]
    env = {**os.environ, **variables}
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    paths = [*dataset_dir.glob("*.tar"), *dataset_dir.glob("*.idx"), dataset_dir / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@contextmanager
def engine(name, folder):
    """Flags of a build there, and variables of its environment."""
    if may_make_namespaces():
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with started(CLUSTERS[name], folder, {**os.environ, "PATH": path}) as cluster:
            yield cluster.flags(), cluster.env
    else:
        main, master = ALONE[name]
        jar = job_server_jar(fetch_jars(name), main, folder)
        flags = [f"--runner={name}", master, f"--{name}_job_server_jar={jar}", "--parallelism=2"]
        yield flags, {"JAVA_TOOL_OPTIONS": " ".join(OPENS)}


@pytest.mark.parametrize(("name", "kinds"), [("flink", ("text", "images")), ("spark", ("text",))])
def test_builds_are_those_of_this_machine(name, kinds, corpora, tmp_path):
    with engine(name, tmp_path) as (flags, variables):
        for kind in kinds:
            here = build(corpora[kind], tmp_path / f"{kind}-here")
            assert sum(path.endswith(".tar") for path in here) > 2
            assert build(corpora[kind], tmp_path / kind, *flags, **variables) == here
