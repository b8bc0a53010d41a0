"""The whole path on a real store: `python -m pipeline` builds into it through faults and a kill,
the same bytes as into a folder; `pipeline.verify` and `pipeline.report` look at it; training reads
it with the losses of the folder.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pipeline.manifest import parse_manifest
from tests.cluster.conftest import ROOT
from tests.cluster.engines import Prism
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_store import SECRET
from tests.cluster.services import Daemons, free_port

SMALL_SHARDS = "shards.target_mib=0.25"
SAME_EACH_TIME = {"config.yaml", "report.json", "report.html"}
"""What tells of the place and of seconds is not the same."""


@pytest.fixture
def bucket(object_store):
    return object_store.new_bucket()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cpu_env):
    """The dataset in a folder."""
    folder = tmp_path_factory.mktemp("near") / "plays"
    code, _, err = finish(start(folder, cpu_env, folder.parent))
    assert code == 0, err
    return folder


@pytest.fixture
def command(bucket, cpu_env, object_store, tmp_path):
    """Starts a build into the bucket; `proxy` stands before the store."""

    def run(*words, proxy=None, env=None):
        variables = env or (object_store.env(url=proxy.url) if proxy else object_store.env())
        return start(f"{bucket}/plays", with_store(cpu_env, variables), tmp_path, *words)

    return run


def start(place, env, scratch, *words):
    config = ROOT / "configs/pipeline/tiny_shakespeare.yaml"
    line = [sys.executable, "-m", "pipeline", config, f"dataset_dir={place}", SMALL_SHARDS]
    line += ["num_workers=2", f"scratch_dir={scratch}/scratch", *words]
    return subprocess.Popen(
        list(map(str, line)),
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def with_store(env, store_env):
    """An environment with the variables of a store, and with no other of their kind."""
    kept = {name: value for name, value in env.items() if not name.startswith("AWS_")}
    return kept | {name: store_env[name] for name in store_env if name.startswith("AWS_")}


def finish(process):
    out, err = process.communicate(timeout=300)
    assert SECRET not in out + err
    return process.returncode, out, err


def verb(name, url, env):
    line = [sys.executable, "-m", f"pipeline.{name}", url]
    return subprocess.run(
        line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def stored(object_store, url):
    fs, root = object_store.file_system(), url.removeprefix("s3://") + "/"
    return {name.removeprefix(root): fs.cat_file(name) for name in fs.find(root)}


def local(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def same_each_time(files):
    return {name: files[name] for name in files.keys() - SAME_EACH_TIME}


def test_built_through_faults_verified_and_trained_with_the_losses_of_a_folder(
    command, object_store, bucket, folder, cpu_env, write_training, tmp_path
):
    with FaultProxy(object_store.url) as proxy:
        for kind in ("status", "reset", "lose"):
            proxy.add(kind, method="PUT", path="train-", skip=1, times=2, every=2)
        proxy.add("status", method="PUT", path="manifest.json", status=500)
        proxy.add("cut", method="GET", path="list-type")
        code, out, err = finish(command(proxy=proxy))
        assert code == 0, err
        assert sum(proxy.struck.values()) >= 5
        puts = [row[1] for row in proxy.requests if row[0] == "PUT" and row[3] == 200]
    assert puts[0].endswith("/upload.json")
    assert puts[-1].endswith("/manifest.json")
    assert out.splitlines()[-1] == f"{bucket}/plays"
    files = stored(object_store, f"{bucket}/plays")
    assert files.keys() == local(folder).keys()
    assert same_each_time(files) == same_each_time(local(folder))
    assert not any(SECRET.encode() in content for content in files.values())
    assert not (tmp_path / "scratch").exists()
    env = with_store(cpu_env, object_store.env())
    code, out, err = finish(command())
    assert (code, out) == (0, f"{bucket}/plays: complete already, of this config and corpus\n"), err
    report = verb("report", f"{bucket}/plays", env)
    assert "train: " in report.stdout
    assert report.stdout.splitlines()[-1] == f"{bucket}/plays"
    verified = verb("verify", f"{bucket}/plays", env)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert f"{bucket}/plays: no fault" in verified.stdout
    far = trained(write_training, tmp_path / "far", f"{bucket}/plays", env)
    near = trained(write_training, tmp_path / "near", folder, cpu_env)
    assert far == near
    assert len(far) == 6


def trained(write_training, folder, dataset, env):
    """The losses of a run of two ranks."""
    config = write_training(folder, num_steps=6)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port"]
    line += [str(free_port()), "-m", "training", str(config), f"data.dataset_dir={dataset}"]
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.parametrize("hanging", ["train-000001.tar.idx", "report.json", "manifest.json"])
def test_a_killed_build_is_finished_by_the_same_command(
    command, object_store, bucket, folder, tmp_path, hanging
):
    with FaultProxy(object_store.url) as proxy:
        proxy.add("hang", method="PUT", path=hanging, times=-1)
        process = command(proxy=proxy)
        limit = time.monotonic() + 120
        while not proxy.struck and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.05)
        assert proxy.struck, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = stored(object_store, f"{bucket}/plays")
    assert "manifest.json" not in before
    assert "upload.json" in before
    with FaultProxy(object_store.url) as proxy:
        code, _, err = finish(command(proxy=proxy))
        assert code == 0, err
        paths = [row[1].split("?")[0] for row in proxy.requests if row[0] == "PUT"]
    tars = {name for name in before if name.endswith(".tar")}
    if not hanging.startswith("train"):  # where publication had begun all shards were finished
        assert tars == {name for name in local(folder) if name.endswith(".tar")}
        assert not tars & {path.rsplit("/", 1)[-1] for path in paths}
    after = stored(object_store, f"{bucket}/plays")
    assert same_each_time(after) == same_each_time(local(folder))
    assert "upload.json" not in after
    assert not (tmp_path / "scratch").exists()


def test_killed_whenever_some_more_objects_lie_there(command, object_store, bucket, cpu_env):
    fs, root = object_store.file_system(), f"{bucket.removeprefix('s3://')}/plays"
    rng, kills = random.Random(0), 0
    while True:
        process = command("shards.target_mib=0.1")
        enough = len(fs.find(root)) + rng.randint(1, 12)
        while process.poll() is None and len(fs.find(root)) < enough:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        assert_whole_or_none(stored(object_store, f"{bucket}/plays"))
    code, _, err = finish(process)
    assert code == 0, err
    assert kills > 2
    verified = verb("verify", f"{bucket}/plays", with_store(cpu_env, object_store.env()))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def assert_whole_or_none(files):
    """What a reader finds: a manifest with every shard, or no manifest."""
    if "manifest.json" in files:
        manifest = parse_manifest(files["manifest.json"].decode(), where="")
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            assert hashlib.sha256(files[shard.name]).hexdigest() == shard.sha256


def test_workers_of_an_engine_write_into_the_store(object_store, bucket, folder, cpu_env, tmp_path):
    daemons = Daemons()
    env = with_store(cpu_env, object_store.env())
    try:
        prism = Prism(daemons, tmp_path, env)
        with FaultProxy(object_store.url) as proxy:
            driver = env | {"AWS_ENDPOINT_URL": proxy.url}
            code, _, err = finish(start(f"{bucket}/plays", driver, tmp_path, *prism.flags()))
            assert code == 0, err
            assert not proxy.count("PUT", "train-0")  # the driver sends no shard
    finally:
        daemons.stop()
    files = stored(object_store, f"{bucket}/plays")
    assert same_each_time(files) == same_each_time(local(folder))
    assert not (tmp_path / "scratch").exists()


REFUSED = {
    "no credentials": ({"key": ""}, "NoCredentialsError", 2),
    "wrong secret": ({"secret": "wrong"}, "PermissionError", 2),
    "unreachable": ({"url": f"http://127.0.0.1:{free_port()}"}, "EndpointConnectionError", 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_a_line_before_anything_is_read(
    command, object_store, bucket, name, cpu_env, tmp_path
):
    settings, words, exit_code = REFUSED[name]
    code, out, err = finish(command(env=object_store.env(**settings)))
    assert (code, out) == (exit_code, "")
    assert words in err.splitlines()[-1]
    assert f"error: {bucket}/plays" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "scratch").rglob("portions"))


def test_a_bucket_that_does_not_exist_is_a_line(command, cpu_env, object_store, tmp_path):
    process = start("s3://nowhere/plays", with_store(cpu_env, object_store.env()), tmp_path)
    code, _, err = finish(process)
    assert code == 2
    assert err.startswith("error: s3://nowhere/plays")
    assert "bucket" in err.lower()
    assert len(err.splitlines()) == 1


def test_an_account_that_may_only_read_is_a_line(command, object_store, bucket):
    object_store.add_reader("looker", "hush-looker", bucket.removeprefix("s3://"))
    code, _, err = finish(command(env=object_store.env(key="looker", secret="hush-looker")))
    assert code == 2
    assert err.startswith(f"error: {bucket}/plays/upload.json: PermissionError")
    assert "hush-looker" not in err
    assert len(err.splitlines()) == 1
