"""The server and the proxy that tests of object storage stand on do what they say.

The faults are seen by a client that never tries again: s3fs hides them, through aiohttp's own
second try on a connection that was closed and botocore's check of an object's sum.
"""

import http.client
import urllib.request

import pytest

from tests.cluster.fault_proxy import KINDS, FaultProxy
from tests.cluster.object_store import KEY, SECRET

CONTENT = bytes(range(111)) * 9


@pytest.fixture
def through(object_store):
    """A file system of a store behind a proxy, the proxy, and a bucket with an object."""
    s3fs = pytest.importorskip("s3fs")
    bucket = object_store.new_bucket()
    object_store.file_system().pipe(f"{bucket}/a", CONTENT)
    with FaultProxy(object_store.url) as proxy:
        fs = s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=proxy.url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"signature_version": "s3v4"},
        )
        yield fs, proxy, f"{bucket}/a"


def ask(fs, path, method="GET", body=None):
    """The answer's body; None where the request failed."""
    verb = {"GET": "get_object", "PUT": "put_object"}[method]
    url = fs.url(path, expires=60, client_method=verb)
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException):
        return None


def test_without_a_fault_everything_passes(through):
    fs, proxy, path = through
    assert fs.cat(path) == CONTENT
    assert fs.cat_file(path, start=5, end=9) == CONTENT[5:9]
    name = path.removeprefix("s3://")
    assert [one for one in proxy.requests if one[0] == "GET"] == [
        ("GET", f"/{name}", "", 200),
        ("GET", f"/{name}", "bytes=5-8", 206),
    ]
    fs.pipe(path, b"x" * (12 << 20), chunksize=5 << 20)  # in parts
    assert fs.cat(path) == b"x" * (12 << 20)
    assert proxy.count("PUT", "partNumber") == 3


@pytest.mark.parametrize("kind", [one for one in KINDS if one not in ("lose", "hang")])
def test_a_fault_strikes_once_what_it_was_told(through, kind):
    fs, proxy, path = through
    proxy.add(kind, method="GET", path="/a", skip=1)
    assert ask(fs, path) == CONTENT
    middle = len(CONTENT) // 2
    assert ask(fs, path) == {
        "truncate": CONTENT[:middle],
        "corrupt": CONTENT[:middle] + bytes([CONTENT[middle] ^ 1]) + CONTENT[middle + 1 :],
    }.get(kind)
    assert proxy.struck == {kind: 1}
    assert ask(fs, path) == CONTENT


def test_a_lost_answer_is_of_a_request_that_was_done(through, object_store):
    fs, proxy, path = through
    proxy.add("lose", method="PUT")
    assert ask(fs, path, "PUT", b"new") is None
    assert object_store.file_system().cat(path) == b"new"
