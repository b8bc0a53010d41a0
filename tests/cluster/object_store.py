"""A real S3 server on this machine: versitygw, which keeps buckets as folders."""

import json
import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster.services import Daemons, free_port, wait_until

MODULE = "github.com/versity/versitygw/cmd/versitygw@latest"
KEY, SECRET = "millrace-key", "hush-this-is-the-secret"
"""Of the store; a test may look for the secret in whatever is written."""


def versitygw():
    """Path of the server's binary, installed by Go if need be; a skip where there is neither."""
    go_bin = Path(os.environ.get("GOBIN") or Path.home() / "go/bin")
    found = shutil.which("versitygw") or shutil.which("versitygw", path=str(go_bin))
    if found is None and shutil.which("go"):
        subprocess.run(["go", "install", MODULE], check=False, capture_output=True, timeout=600)
        found = shutil.which("versitygw", path=str(go_bin))
    if found is None:
        pytest.skip(f"needs versitygw, or Go for `go install {MODULE}`")
    return found


class ObjectStore:
    """An S3 server that keeps its buckets as folders; it can be stopped and started again."""

    def __init__(self, folder, host="127.0.0.1"):
        """Under another host it answers on all addresses of this machine."""
        self.folder = Path(folder)
        self.listens = host if host == "127.0.0.1" else "0.0.0.0"
        self.buckets = self.folder / "buckets"
        for name in ("buckets", "accounts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://{host}:{self.port}"
        self.daemons = Daemons()

    def start(self, *options):
        words = ["--port", f"{self.listens}:{self.port}", "--access", KEY, "--secret", SECRET]
        words += ["--iam-dir", self.folder / "accounts", "--iam-cache-disable", "--quiet"]
        self.daemons.start(
            *(versitygw(), *words, *options, "posix", self.buckets), log=self.folder / "log"
        )
        wait_until(lambda: answers(self.port), seconds=30, why=(self.folder / "log").read_text)
        return self

    def stop(self):
        self.daemons.stop()

    def new_bucket(self):
        """The URL of a bucket that holds nothing."""
        name = f"bucket-{len(list(self.buckets.iterdir()))}"
        self.ask("create_bucket", Bucket=name)
        return f"s3://{name}"

    def add_reader(self, key, secret, bucket):
        """An account that may read the bucket and write nothing."""
        admin = [versitygw(), "admin", "--access", KEY, "--secret", SECRET, "--region", "us-east-1"]
        admin += ["--endpoint-url", self.url]
        account = ["create-user", "--access", key, "--secret", secret, "--role", "user"]
        subprocess.run([*admin, *account], check=True, capture_output=True)
        everything = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statement = {"Effect": "Allow", "Principal": {"AWS": [key]}, "Resource": everything}
        statement["Action"] = ["s3:GetObject", "s3:ListBucket"]
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.ask("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))

    def file_system(self):
        """fsspec's, without a cache of listings."""
        s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=self.url,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def ask(self, method, **arguments):
        """A call of the S3 API."""
        return self.file_system().call_s3(method, **arguments)

    def env(self, *, url=None, key=KEY, secret=SECRET):
        """The environment of a process that works with the store, and with no other."""
        kept = {name: os.environ[name] for name in os.environ if not name.startswith("AWS_")}
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret} if key else {}
        return {
            **kept,
            **keys,
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CONFIG_FILE": "/dev/null",
        }


@pytest.fixture(scope="session")
def object_store(tmp_path_factory):
    """A store for all tests of a session, each with buckets of its own."""
    store = ObjectStore(tmp_path_factory.mktemp("store")).start()
    yield store
    store.stop()


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
