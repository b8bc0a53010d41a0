"""A dataset in a real object store, behind a proxy that makes faults: trained by two ranks, killed,
resumed, with the losses of the same dataset on a disk.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.cluster.services import free_port

fault_proxy = pytest.importorskip("tests.cluster.fault_proxy")
stores = pytest.importorskip("tests.cluster.object_store")


@pytest.fixture
def start(cpu_env, write_training, tmp_path):
    """Starts two ranks; the process leads a group of its own."""

    def run(name, *words, variables=None):
        config = write_training(tmp_path / name, num_steps=60, every_steps=10)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += ["--master_port", str(free_port()), "-m", "training", config, *words]
        with (tmp_path / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                env=cpu_env | (variables or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    started = []
    yield run
    for process in started:
        kill(process)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def test_killed_and_resumed_from_a_store_with_faults(start, object_store, text_dataset, tmp_path):
    near = start("near")
    bucket = "s3://trained"
    (object_store.buckets / "trained").mkdir()
    object_store.file_system().put(f"{text_dataset}/", f"{bucket}/shakespeare/", recursive=True)
    words = [
        f"data.dataset_dir={bucket}/shakespeare",
        f"data.store.cache_dir={tmp_path}/cache",
        "data.store.request_seconds=5",
    ]
    with fault_proxy.FaultProxy(object_store.url) as proxy:
        for number, kind in enumerate(("status", "reset", "cut", "truncate", "corrupt", "hang")):
            proxy.add(kind, method="GET", path=".tar", skip=number)
        for status in (500, 429):
            proxy.add("status", method="GET", path="manifest.json", status=status)
        variables = object_store.env(url=proxy.url)
        victim = start("far", *words, variables=variables)
        metrics = tmp_path / "far/run/metrics.jsonl"
        checkpoints = tmp_path / "far/run/checkpoints"
        while not (checkpoints / "latest").exists():
            assert victim.poll() is None, (tmp_path / "far.log").read_text()
            time.sleep(0.05)
        kill(victim)
        assert len(metrics.read_text().splitlines()) < 60
        again = start("far", *words, variables=variables)
        assert again.wait(timeout=600) == 0, (tmp_path / "far.log").read_text()
        whole = [row for row in proxy.requests if row[0] == "GET" and row[3] == 206]
    assert near.wait(timeout=600) == 0
    assert "resumed from" in (tmp_path / "far.log").read_text()
    assert losses(tmp_path / "far/run") == losses(tmp_path / "near/run")
    assert {"status", "reset", "cut", "truncate", "corrupt", "hang"} == proxy.struck.keys()
    parts = [(path, span) for _, path, span, _ in whole if ".tar" in path]
    assert len(parts) == len(set(parts)), "a chunk was fetched twice for the node"
    for path in [tmp_path / "far.log", *(tmp_path / "far").rglob("*")]:
        if path.is_file():
            assert stores.SECRET.encode() not in path.read_bytes(), path


def kill(process):
    """The launcher and its ranks, at once, if they still run."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
