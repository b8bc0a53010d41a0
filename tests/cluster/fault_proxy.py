"""An HTTP proxy before an object store: passes requests on, makes faults on chosen ones, counts."""

import http.client
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("status", "reset", "lose", "cut", "truncate", "corrupt", "hang")
HANG_SECONDS = 600


@dataclass
class Fault:
    """What is done to requests.

    status: an error is answered in the store's place.
    reset: the connection is closed without an answer, and the store is not asked.
    lose: the same, but the store did what it was asked for.
    cut: the connection is closed in the middle of the answer's body.
    truncate: half of the body is sent as if it were all.
    corrupt: a byte in the middle of the body is another.
    hang: no answer comes.
    """

    kind: str
    method: str = ""
    """GET, PUT, ...; empty: any."""
    path: str = ""
    """What the path or its query holds, as `train-` or `uploadId`; empty: any."""
    times: int = 1
    """So many requests; -1: every one."""
    skip: int = 0
    """So many that fit are let through first."""
    every: int = 1
    """Behind them each so-manieth that fits."""
    status: int = 503

    def __post_init__(self):
        assert self.kind in KINDS, self.kind
        self.seen = self.done = 0

    def strikes(self, method, path):
        if (self.method and method != self.method) or self.path not in path:
            return False
        self.seen += 1
        due = self.seen > self.skip and (self.seen - self.skip - 1) % self.every == 0
        if not due or self.done == self.times:
            return False
        self.done += 1
        return True


class FaultProxy:
    """`with FaultProxy(store.url) as proxy`: use `proxy.url`, add faults with `proxy.add`."""

    def __init__(self, target):
        self.host = urlsplit(target).netloc
        self.faults = []
        self.requests = []
        """(method, path with query, Range header or '', status or the kind of the fault)."""
        self.struck = Counter()
        """Faults by kind."""
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.proxy = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind, **settings):
        fault = Fault(kind, **settings)
        self.faults.append(fault)
        return fault

    def count(self, method, path=""):
        """Requests that were made, whatever came of them."""
        return sum(one[0] == method and path in one[1] for one in list(self.requests))

    def fault_for(self, method, path):
        with self.lock:
            fault = next((one for one in self.faults if one.strikes(method, path)), None)
            if fault is not None:
                self.struck[fault.kind] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def forward(self):
        proxy = self.server.proxy
        body = self._read_body()
        fault = proxy.fault_for(self.command, self.path)
        kind = fault.kind if fault else ""
        if kind in ("status", "reset", "hang"):
            self._note(fault.status if kind == "status" else kind)
            return self._refuse(fault)
        answer, content = self._ask(body)
        self._note(kind or answer.status)
        if kind == "lose":
            return self._close()
        return self._answer(answer, content, kind)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    def log_message(self, *_):
        pass

    def _note(self, result):
        row = (self.command, self.path, self.headers.get("Range", ""), result)
        self.server.proxy.requests.append(row)

    def _read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, body):
        """The host is signed, so the store is told the one that the client knows."""
        connection = http.client.HTTPConnection(self.server.proxy.host, timeout=120)
        hops = ("expect", "transfer-encoding", "connection", "content-length")
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in hops:
                    connection.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer, answer.read()
        except OSError:  # the store is down: so are we
            self._note("down")
            self._close()
            raise
        finally:
            connection.close()

    def _answer(self, answer, content, kind):
        middle = len(content) // 2
        if kind == "corrupt" and content:
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if kind == "truncate":
            content = content[:middle]
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        if length is not None and answer.status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[:middle] if kind == "cut" else content)
        if kind == "cut":
            self._close()

    def _refuse(self, fault):
        if fault.kind == "hang":
            time.sleep(HANG_SECONDS)
        if fault.kind != "status":
            self._close()
            return
        code = {503: "SlowDown", 429: "TooManyRequests", 403: "AccessDenied"}
        code = code.get(fault.status, "InternalError")
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(fault.status, code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _close(self):
        """Send a reset, not an end: nothing that waits in the buffers is sent."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
