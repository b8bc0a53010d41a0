"""`python -m pipeline.upload` to a real store: faults, a kill, every refusal in a line."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_store import SECRET
from tests.cluster.services import free_port


@pytest.fixture
def bucket(object_store):
    return object_store.new_bucket()


def start(dataset, url, env):
    command = [sys.executable, "-m", "pipeline.upload", str(dataset), url]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(dataset, url, env):
    process = start(dataset, url, env)
    out, err = process.communicate(timeout=240)
    assert SECRET not in out + err
    return process.returncode, out, err


def stored(object_store, url):
    fs, root = object_store.file_system(), url.removeprefix("s3://") + "/"
    return {name.removeprefix(root): fs.cat_file(name) for name in fs.find(root)}


def local(dataset):
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in dataset.rglob("*")
        if path.is_file()
    }


def test_the_same_bytes_through_faults(object_store, bucket, text_dataset):
    with FaultProxy(object_store.url) as proxy:
        for kind in ("status", "reset", "lose"):
            proxy.add(kind, method="PUT", path="train-", skip=1, times=2, every=2)
        code, out, err = finish(text_dataset, f"{bucket}/a", object_store.env(url=proxy.url))
        assert code == 0, err
        assert sum(proxy.struck.values()) >= 3
    assert f"{len(local(text_dataset))} files" in out
    assert stored(object_store, f"{bucket}/a") == local(text_dataset)


def test_a_killed_upload_goes_on(object_store, bucket, text_dataset):
    env = object_store.env()
    with FaultProxy(object_store.url) as proxy:
        proxy.add("hang", method="PUT", path="train-", skip=1, times=-1)
        process = start(text_dataset, f"{bucket}/a", env | {"AWS_ENDPOINT_URL": proxy.url})
        limit = time.monotonic() + 60
        while not proxy.struck and time.monotonic() < limit:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = stored(object_store, f"{bucket}/a")
    assert "upload.json" in before
    assert "manifest.json" not in before
    code, out, err = finish(text_dataset, f"{bucket}/a", env)
    assert code == 0, err
    assert f"{len(before) - 1} were there already" in out
    assert stored(object_store, f"{bucket}/a") == local(text_dataset)


REFUSED = {
    "no credentials": ({"key": ""}, "NoCredentialsError", 2),
    "wrong secret": ({"secret": "wrong"}, "PermissionError", 2),
    "unreachable": ({"url": f"http://127.0.0.1:{free_port()}"}, "EndpointConnectionError", 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_a_line(object_store, bucket, text_dataset, name):
    settings, words, exit_code = REFUSED[name]
    code, out, err = finish(text_dataset, f"{bucket}/a", object_store.env(**settings))
    assert (code, out) == (exit_code, "")
    assert words in err.splitlines()[-1]
    assert f"error: {bucket}/a" in err
    assert "Traceback" not in err


def test_a_bucket_that_does_not_exist_is_a_line(object_store, text_dataset):
    code, _, err = finish(text_dataset, "s3://nowhere/a", object_store.env())
    assert code == 2
    assert err.startswith("error: s3://nowhere/a")
    assert "bucket" in err.lower()
    assert len(err.splitlines()) == 1


def test_an_account_that_may_only_read_is_a_line(object_store, bucket, text_dataset):
    object_store.add_reader("reader", "hush-reader", bucket.removeprefix("s3://"))
    env = object_store.env(key="reader", secret="hush-reader")
    code, _, err = finish(text_dataset, f"{bucket}/a", env)
    assert code == 2
    assert err.startswith(f"error: {bucket}/a/upload.json: PermissionError")
    assert "hush-reader" not in err
    assert len(err.splitlines()) == 1
