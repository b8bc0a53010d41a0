"""What remote stores and their packages raise is one line, and shows no credentials."""

import gzip
import http.server
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem, register_implementation

from configs import load
from pipeline.build import build
from pipeline.byte_range import lines
from pipeline.config import PipelineConfig
from pipeline.corpus import CorpusFile, list_files
from pipeline.refused import RefusedError
from pipeline.urls import StoreError, asking, read_url

ROOT = Path(__file__).parents[2]


class NoCredentialsError(Exception):
    """As botocore's: no OSError."""


class RefusingFileSystem(AbstractFileSystem):
    """Fails as it was told; a test tells the class."""

    protocol = "refusing"
    cachable = False
    failure: Exception

    def info(self, path, **kwargs):
        raise self.failure

    ls = _open = info


@pytest.fixture
def refusing(monkeypatch):
    register_implementation("refusing", RefusingFileSystem, clobber=True)

    def fail_with(failure):
        monkeypatch.setattr(RefusingFileSystem, "failure", failure, raising=False)

    return fail_with


FAILURES = [
    (
        NoCredentialsError("Unable to locate\ncredentials"),
        StoreError,
        "{}: NoCredentialsError: Unable to locate credentials; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or for a public bucket FSSPEC_S3_ANON=1",
    ),
    (PermissionError("Forbidden"), StoreError, "{}: PermissionError: Forbidden"),
    (OSError(5, "Slow Down"), StoreError, "{}: OSError: [Errno 5] Slow Down"),
    (
        FileNotFoundError("The specified bucket does not exist"),
        FileNotFoundError,
        "{}: no such file or folder (The specified bucket does not exist)",
    ),
    (FileNotFoundError("bucket/a"), FileNotFoundError, "{}: no such file or folder"),
    (ValueError("bad bucket name"), ValueError, "{}: bad bucket name"),
]


@pytest.mark.parametrize(("failure", "kind", "message"), FAILURES, ids=lambda one: repr(one)[:30])
@pytest.mark.parametrize("ask", ["list", "read", "lines"])
def test_the_url_is_named_in_one_line(refusing, failure, kind, message, ask):
    refusing(failure)
    url = "refusing://bucket/a"
    with pytest.raises(kind) as raised:
        if ask == "list":
            list_files([url], (".txt",))
        elif ask == "read":
            read_url(url)
        else:
            list(lines(CorpusFile(url, "a", 9, ""), start=0, stop=None, max_bytes=9))
    assert str(raised.value) == message.format(url)


def test_a_glob_that_matches_nothing_asks_why(refusing):
    refusing(FileNotFoundError("The specified bucket does not exist"))
    with pytest.raises(FileNotFoundError, match=r"\*\.txt: no such .* \(The specified bucket"):
        list_files(["refusing://bucket/*.txt"], (".txt",))


def test_errors_of_this_machine_s_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, asking("a"):
        (tmp_path / "none").read_bytes()
    assert raised.value.filename == str(tmp_path / "none")


class Refuse(http.server.BaseHTTPRequestHandler):
    """S3 as far as its refusals: the bucket's name is the code."""

    def do_GET(self):
        code = self.path.split("/")[1].split("?")[0]
        body = f"<Error><Code>{code}</Code><Message>The {code} of it</Message></Error>".encode()
        self.send_response(404 if code == "NoSuchBucket" else 403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def store():
    """The URL of a store that refuses everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


KEYS = {"AWS_ACCESS_KEY_ID": "AKIAHUSH", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "keys", "said"),
    [
        ("s3://NoSuchBucket/a.jsonl", KEYS, "no such file or folder (The NoSuchBucket of it)"),
        ("s3://NoSuchBucket/*.jsonl", KEYS, "no such file or folder (Not Found)"),
        ("s3://AccessDenied/a.jsonl", KEYS, "PermissionError: Forbidden"),
        ("s3://AccessDenied/*.jsonl", KEYS, "PermissionError: The AccessDenied of it"),
        ("s3://AccessDenied/a.jsonl", {}, "NoCredentialsError: Unable to locate credentials; set"),
        ("s3://me:hush@AccessDenied/a.jsonl", {}, "ParamValidationError: Parameter valid"),
    ],
)
def test_a_build_from_s3_that_is_refused(tmp_path, store, path, keys, said):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    config = tmp_path / "build.yaml"
    config.write_text(f"dataset_dir: {tmp_path / 'd'}\ncorpus: {{format: jsonl, path: ['{path}']}}")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": store, "AWS_EC2_METADATA_DISABLED": "true", **keys}
    environment |= {"HOME": str(tmp_path), "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "pipeline", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path.replace(':hush@', ':***@')}: {said}")
    assert done.stderr.count("\n") == 1
    assert "hush" not in (done.stderr + done.stdout).lower()


class Hand(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, for whoever knows the password."""

    def send_head(self):
        if "Authorization" not in self.headers:
            return self.send_error(401)
        return super().send_head()

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_dataset_does_not_hold_the_credentials_of_its_corpus(tmp_path):
    """Nor does what a failed build leaves."""
    pytest.importorskip("aiohttp", reason="the extra http is not installed")
    lines = [f'{{"text": "document {number}"}}\n' for number in range(99)]
    (tmp_path / "a.jsonl").write_text("".join([*lines, "{bad\n"]))
    hand = partial(Hand, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hand) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://me:hush@127.0.0.1:{server.server_port}/a.jsonl?signature=hush"
        overrides = [
            f"dataset_dir={tmp_path / 'dataset'}",
            "corpus.format=jsonl",
            f"corpus.path=['{url}']",
            "tokenizer.kind=characters",
            "quality.enabled=false",
            "split.fraction=0",
            "num_workers=1",
        ]
        with pytest.raises(RefusedError, match="1 of 100 records"):
            build(load(PipelineConfig, None, [*overrides, "max_bad_fraction=0"]))
        assert contents_with(b"hush", tmp_path / "dataset") == []
        build(load(PipelineConfig, None, overrides))
        server.shutdown()
    assert contents_with(b"hush", tmp_path / "dataset") == []
    assert contents_with(b"me:***@127.0.0.1", tmp_path / "dataset") == ["config.yaml"]


def contents_with(secret, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    read = {path.name: path.read_bytes() for path in files}
    unpacked = {k: gzip.decompress(v) if k.endswith(".gz") else v for k, v in read.items()}
    return [name for name, content in unpacked.items() if secret in content]
