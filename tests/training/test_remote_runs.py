"""Runs whose dataset lies behind a URL: losses of a disk, a line for each mistake, no secrets."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import yaml

from tests.s3_server import KEY, SECRET, S3Server

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path, dataset_dir, image_dir):
    for name, folder in (("text", dataset_dir), ("images", image_dir)):
        shutil.copytree(folder, tmp_path / "buckets/bucket" / name)
    with S3Server(tmp_path / "buckets") as server:
        yield server


@pytest.fixture
def train(cli, write_config, store, tmp_path):
    """Train from the store with overrides; the answer of the command."""

    def run(*words, url="s3://bucket/text", variables=None, run_dir=tmp_path / "run"):
        overrides = [f"run_dir={run_dir}", f"data.dataset_dir={url}", *words]
        return cli("training", write_config(), *overrides, variables=variables or store.env())

    return run


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(folder):
    return [row["loss"] for row in rows(folder)]


def assert_no_secret(folder, answer):
    for text in (answer["stdout"], answer["stderr"]):
        assert SECRET not in text
        assert KEY not in text
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert KEY.encode() not in content, path


def two_ranks(config, *words, environment, variables):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port", str(free_port()), "-m", "training", str(config), *words]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return {"stdout": done.stdout, "stderr": done.stderr}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.timeout(600)
def test_two_ranks_train_as_from_a_disk(write_config, environment, store, tmp_path, scalars):
    """Bitwise, with faults on the way; each chunk is fetched once for both; keys are not told."""
    near, far, cache = tmp_path / "near", tmp_path / "far", tmp_path / "cache"
    store.fail("503", "500", "truncate", "corrupt", "429")
    for folder, words in (
        (near, []),
        (far, ["data.dataset_dir=s3://bucket/text", f"data.store.cache_dir={cache}"]),
    ):
        answer = two_ranks(
            write_config(),
            f"run_dir={folder}",
            *words,
            environment=environment,
            variables=store.env(),
        )
    assert losses(far) == losses(near)
    assert rows(far, "evaluation.jsonl") == rows(near, "evaluation.jsonl")
    assert store.faults == []
    reads = store.chunk_reads()
    assert {path for path, _ in reads} == {
        f"/bucket/text/{split}-000000.tar" for split in ("train", "validation")
    }
    assert len(reads) == 4
    assert sum(reads.values()) == 4 + 1  # once more for the body that came corrupt
    shown = scalars(far)
    assert shown["data/store_retries"][-1][1] >= 3
    assert shown["data/cache_hits"][-1][1] == 2  # the other rank's
    assert "3 reads made again" in answer["stdout"] or "5 reads made again" in answer["stdout"]
    assert_no_secret(far, answer)


def test_a_store_that_stays_down_ends_a_run_that_resumes(train, store, cli, write_config, tmp_path):
    cli("training", write_config(), f"run_dir={tmp_path}/near")
    store.fail(*["500"] * 99, path="validation-000000.tar")
    answer = train("data.store.retry_seconds=0.5", "evaluation.every_steps=3")
    assert answer["code"] == 1
    *warnings, error = answer["stderr"].splitlines()
    where = "s3://bucket/text/validation-000000.tar: chunk 0, bytes 0 to "
    assert error.startswith(f"error: {where}")
    assert "not readable" in error
    assert "The InternalError of it" in error
    assert len([line for line in warnings if "asked again" in line]) == 1, warnings
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    store.faults.clear()
    answer = train("evaluation.every_steps=3")
    assert answer["code"] == 0, answer
    assert f"resumed from {tmp_path}/run/checkpoints/step-00000002" in answer["stdout"]
    assert losses(tmp_path / "run") == losses(tmp_path / "near")
    assert_no_secret(tmp_path / "run", answer)


def test_images_and_their_vectors_are_those_of_a_disk(cli, write_image_config, store, tmp_path):
    import pyarrow.parquet as pq

    variables = store.env()
    for name, words in (("near", []), ("far", ["data.dataset_dir=s3://bucket/images"])):
        config = write_image_config({"name": "vit"}, "image_classification")
        answer = cli("training", config, f"run_dir={tmp_path / name}", *words, variables=variables)
        assert answer["code"] == 0, answer
    assert losses(tmp_path / "far") == losses(tmp_path / "near")
    folder = store.folder / "bucket/images"
    store.fail("503", "truncate")
    for place, name in ((folder, "near"), ("s3://bucket/images", "far")):
        out = tmp_path / f"{name}.parquet"
        answer = cli(
            *("training.embed", tmp_path / "far", place, "--out", out), variables=variables
        )
        assert answer["code"] == 0, answer
    assert pq.read_table(tmp_path / "far.parquet") == pq.read_table(tmp_path / "near.parquet")


def test_the_doctor_looks_at_the_store(cli, write_config, store, tmp_path):
    words = [write_config(), "data.dataset_dir=s3://bucket/text", f"run_dir={tmp_path}/run"]
    answer = cli("training.doctor", *words, "--no-parity", variables=store.env())
    assert "s3://bucket/text: train 2 samples, validation 2 samples" in answer["stdout"]
    answer = cli("training.doctor", *words, "--no-parity", variables=store.env(key="other"))
    assert answer["code"] == 1
    assert "s3://bucket/text/manifest.json: PermissionError: The AccessDenied of it" in " ".join(
        answer["stdout"].split()
    )


MISTAKES = {
    "no credentials": (
        {"key": None},
        "s3://bucket/text",
        "error: s3://bucket/text/manifest.json: NoCredentialsError: Unable to locate credentials; "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or for a public bucket "
        "FSSPEC_S3_ANON=1",
    ),
    "refused": (
        {"key": "other"},
        "s3://bucket/text",
        "error: s3://bucket/text/manifest.json: PermissionError: The AccessDenied of it",
    ),
    "no bucket": (
        {},
        "s3://other/text",
        "error: s3://other/text: no manifest.json, so no complete dataset (The NoSuchBucket of it)",
    ),
    "no dataset": (
        {},
        "s3://bucket/nothing",
        "error: s3://bucket/nothing: no manifest.json, so no complete dataset (The NoSuchKey of "
        "it)",
    ),
    "credentials in the URL": (
        {},
        f"https://me:{SECRET}@bucket/text",
        "python -m training: data.dataset_dir must not hold credentials, found "
        "https://me:***@bucket/text; give them by the environment: docs/object_storage.md",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(train, store, tmp_path, mistake):
    environment, url, told = MISTAKES[mistake]
    answer = train(url=url, variables=store.env(**environment))
    assert (answer["code"], answer["stderr"]) == (2, f"{told}\n")
    assert not (tmp_path / "run/config.yaml").exists()
    assert SECRET not in answer["stdout"] + answer["stderr"]


def test_nobody_answers(cli, write_config, store, tmp_path, monkeypatch):
    """Within half a minute, for nothing was there before."""
    words = [f"run_dir={tmp_path}/run", "data.dataset_dir=s3://bucket/text"]
    nowhere = store.env(url=f"http://127.0.0.1:{free_port()}")
    answer = cli("training", write_config(), *words, variables=nowhere)
    assert answer["code"] == 1
    warning, error = answer["stderr"].splitlines()
    assert warning.startswith("warning: s3://bucket/text/manifest.json: EndpointConnectionError: ")
    assert warning.endswith("; asked again, for 30 s at most")
    assert error.startswith("error: s3://bucket/text/manifest.json: not readable in ")
    assert "Could not connect to the endpoint URL" in error


def test_a_cache_that_cannot_be(train):
    answer = train("data.store.cache_dir=/proc/nothing")
    assert answer["code"] == 2
    assert answer["stderr"] == (
        "error: data.store.cache_dir: /proc/nothing cannot be written: No such file or directory; "
        "name a folder on a disk of the node, or leave it empty\n"
    )
    answer = train("data.store.cache_dir=/tmp/cache", "data.store.cache_gib=1e-6")
    assert answer["code"] == 2
    assert answer["stderr"].startswith(
        "error: data.store.cache_gib=1e-06 is too little: a chunk has 0.0 MiB"
    )


def test_a_missing_package_is_named(write_config, environment, tmp_path):
    hide = "import sys; sys.modules['s3fs'] = None; sys.argv = ['training', *sys.argv[1:]]\n"
    code = f"{hide}import runpy; runpy.run_module('training', run_name='__main__', alter_sys=True)"
    words = [str(write_config()), f"run_dir={tmp_path}/run", "data.dataset_dir=s3://bucket/text"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: s3://bucket/text: Install s3fs to access S3; pip install 'millrace[s3]'\n"
    )


def test_what_a_run_keeps_of_its_store(train, tmp_path):
    """The config of a run says where the dataset was, so that the same command goes on."""
    assert train("num_steps=2", "schedule.warmup_steps=1")["code"] == 0
    tree = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert tree["data"]["dataset_dir"] == "s3://bucket/text"
