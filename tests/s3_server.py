"""As much of S3 as reading needs, from a folder of buckets, with faults and delays on demand.

`python -m tests.s3_server FOLDER --latency 0.03` serves a benchmark.
"""

import argparse
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

CODES = {"503": "SlowDown", "403": "AccessDenied", "429": "TooManyRequests"}
KEY, SECRET = "millrace-key", "hush-this-is-the-secret"


class S3Server:
    """Serves while it is entered; `served` counts whole answers by (object, range)."""

    def __init__(self, folder, *, latency=0.0, port=0):
        self.folder = Path(folder)
        self.latency = latency
        self.served = Counter()
        self.faults = []  # (kind, pattern of the path), each for one request
        self.is_down = False
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", port), type("Bound", (Handler,), {"s3": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, *kinds, path=r"\.tar"):
        """The next requests of such an object fail, each in its way."""
        self.faults += [(kind, path) for kind in kinds]

    def next_fault(self, path):
        with self.lock:
            for fault in self.faults:
                if re.search(fault[1], path):
                    self.faults.remove(fault)
                    return fault[0]
        return "drop" if self.is_down else None

    def chunk_reads(self):
        """How often each part of a shard was served."""
        return {place: n for place, n in self.served.items() if place[0].endswith(".tar")}

    def env(self, *, key=KEY, url=None):
        """Of a process that works with this store and no other."""
        return self.env_of(url or self.url, key=key)

    @staticmethod
    def env_of(url, *, key=KEY):
        """The same of the server at a URL."""
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": SECRET} if key else {}
        return {
            **keys,
            "AWS_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CONFIG_FILE": "/dev/null",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: S3Server

    def do_GET(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        time.sleep(self.s3.latency)
        fault = self.s3.next_fault(path)
        if fault == "drop":
            return self.abort()
        if fault == "hang":
            time.sleep(5)
            return self.abort()
        if fault:
            code = re.match(r"\d+", fault)
            if code:
                return self.refuse(int(code[0]), CODES.get(fault, "InternalError"))
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            return self.refuse(403, "AccessDenied")
        if not (self.s3.folder / path.strip("/").split("/")[0]).is_dir():
            return self.refuse(404, "NoSuchBucket")
        if "list-type" in query:
            return self.listing(path, query.get("prefix", [""])[0])
        return self.object(path, fault)

    do_HEAD = do_GET

    def object(self, path, fault):
        file = self.s3.folder / path.strip("/")
        if not file.is_file():
            return self.refuse(404, "NoSuchKey")
        content, span = file.read_bytes(), self.headers.get("Range")
        total = len(content)
        if span:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()
            content = content[int(first) : int(last or total) + 1]
        if fault == "corrupt":
            content = content[:99] + bytes([content[99] ^ 1]) + content[100:]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content)))
        if span:
            self.send_header(
                "Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{total}"
            )
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(content[: len(content) // 2])
            return self.abort()
        if self.command == "GET":
            self.wfile.write(content)
            with self.s3.lock:
                self.s3.served[path, span] += 1
        return None

    def listing(self, path, prefix):
        bucket = self.s3.folder / path.strip("/")
        rows = "".join(
            f"<Contents><Key>{file.relative_to(bucket)}</Key><Size>{file.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for file in sorted(bucket.rglob("*"))
            if file.is_file() and str(file.relative_to(bucket)).startswith(prefix)
        )
        self.answer(
            200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        )

    def refuse(self, status, code):
        self.answer(
            status, f"<Error><Code>{code}</Code><Message>The {code} of it</Message></Error>"
        )

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def abort(self):
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    words = parser.parse_args()
    server = S3Server(words.folder, latency=words.latency, port=words.port)
    print(server.url, flush=True)
    server.server.serve_forever()
