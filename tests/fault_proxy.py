"""A proxy on the loopback interface that damages what passes between S3 clients and a server.

It stands in front of a server of `tests.s3_servers` and forwards requests unchanged, the Host
header too, because signatures cover it. Rules choose which requests suffer which fault:

    with fault_proxy(server, seed=1) as proxy, proxy.environment():
        proxy.add(Rule("503", method="PUT", path="/data/", probability=0.1))
        proxy.add(Rule("cut", path=r"/_snapshots/", count=1))
        storage = open_storage(proxy.new_directory())
        ...
        assert proxy.num_faults("cut") == 1

Any process that has the proxy's endpoint can do the same by `RemoteFaults(endpoint)`. The fixtures
`moto_proxy` and `rgw_proxy` are a proxy whose environment is set. Rules are asked in the order in
which they were added, and the first that fires wins. Equal seeds fire at the same matching requests
(the first, the fourth ...), in whatever order threads send them.

    500 502 503 429      answered at once with the S3 error of this status; nothing is forwarded
    expired denied       the same with 403 ExpiredToken and 403 AccessDenied
    reset                the connection is reset, nothing is forwarded
    cut                  forwarded; then the connection is reset instead of the answer
    cut_head             forwarded; then half of the answer's head, and the connection is reset
    stall                nothing is forwarded or answered for `seconds`, then reset
    stall_answer         forwarded; not answered for `seconds`, then reset
    stall_body           forwarded; half of the answer's body, nothing for `seconds`, then reset
    truncate             half of the answer's body under its full Content-Length, then closed
    truncate_fitting     half of the answer's body under a Content-Length that fits the half
    latency              forwarded and answered after `seconds`
    flip_answer          one bit of the answer's body is another
    flip_request         one bit of the request's body is another
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.s3_servers import S3Server

CONTROL_PATH = "/-faults"
UPSTREAM_TIMEOUT_S = 60
MAX_EVENTS = 100_000

_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "502": (502, "BadGateway", "Bad gateway"),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Too many requests"),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
_BEFORE = (*_ERRORS, "reset", "stall")
_ANSWER = ("cut", "cut_head", "stall_answer")
_BODY = ("stall_body", "truncate", "truncate_fitting", "flip_answer")
FAULTS = (*_BEFORE, *_ANSWER, *_BODY, "latency", "flip_request")


@dataclass(frozen=True)
class Rule:
    """Which requests suffer which fault.

    `method` and `path` are regular expressions: the whole method, and anywhere in the path with its
    query. Of the matching requests the first `after` are spared, then each is hit with
    `probability`, at most `count` in all (None: any number). Faults of a body spare bodies that are
    empty, and are then not counted.
    """

    fault: str
    method: str = ".*"
    path: str = ""
    probability: float = 1.0
    count: int | None = None
    after: int = 0
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"{self.fault!r} is none of the faults {', '.join(FAULTS)}")


@dataclass(frozen=True)
class Event:
    """One request that passed; `fault` is None where it passed unharmed, `status` the server's."""

    method: str
    path: str
    fault: str | None
    status: int | None
    at_s: float


class FaultRules:
    """The rules in force and what has happened; to be shared between threads."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._seen: list[int] = []
        self._fired: list[int] = []
        self._events: list[Event] = []

    def add(self, *rules: Rule) -> None:
        """Add rules behind those that there are."""
        with self._lock:
            for rule in rules:
                self._rules.append(rule)
                self._seen.append(0)
                self._fired.append(0)

    def clear(self) -> None:
        """Remove all rules: from now on everything passes. The events stay."""
        with self._lock:
            self._rules, self._seen, self._fired = [], [], []

    def events(self) -> list[Event]:
        """What has passed so far, the oldest first."""
        with self._lock:
            return list(self._events)

    def forget(self) -> None:
        """Forget the events so far."""
        with self._lock:
            self._events.clear()

    def num_faults(self, *faults: str) -> int:
        """How many requests suffered one of these faults, or any."""
        return sum(
            event.fault is not None and (not faults or event.fault in faults)
            for event in self.events()
        )

    def choose(self, method: str, path: str, num_request_bytes: int) -> Rule | None:
        """The rule that hits this request, if any; counts it as fired."""
        with self._lock:
            for index, rule in enumerate(self._rules):
                if not re.fullmatch(rule.method, method) or not re.search(rule.path, path):
                    continue
                if rule.fault == "flip_request" and not num_request_bytes:
                    continue
                seen = self._seen[index]
                self._seen[index] += 1
                if seen < rule.after or rule.count is not None and self._fired[index] >= rule.count:
                    continue
                chance = random.Random(f"{self._seed}/{index}/{seen}").random()
                if chance < rule.probability:
                    self._fired[index] += 1
                    return rule
            return None

    def spared(self, rule: Rule) -> None:
        """Count a rule as not fired: there was no body that it could damage."""
        with self._lock:
            if rule in self._rules:
                self._fired[self._rules.index(rule)] -= 1

    def record(self, event: Event) -> None:
        """Note what happened to a request."""
        with self._lock:
            if len(self._events) < MAX_EVENTS:
                self._events.append(event)


class RemoteFaults:
    """The rules of a proxy in another process, or of any whose endpoint is known."""

    def __init__(self, endpoint: str) -> None:
        self._url = endpoint + CONTROL_PATH

    def add(self, *rules: Rule) -> None:
        """Add rules behind those that there are."""
        self._call("POST", [asdict(rule) for rule in rules])

    def clear(self) -> None:
        """Remove all rules."""
        self._call("DELETE")

    def events(self) -> list[Event]:
        """What has passed so far, the oldest first."""
        return [Event(**values) for values in self._call("GET")]

    def _call(self, method: str, values: object = None) -> Any:
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self._url, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


class FaultProxy(FaultRules):
    """A running proxy; made by `fault_proxy`."""

    def __init__(self, server: S3Server, seed: int) -> None:
        super().__init__(seed)
        self._seed_bits = random.Random(seed)
        self._stopping = threading.Event()
        upstream = urllib.parse.urlsplit(server.endpoint)
        self.upstream = (str(upstream.hostname), int(upstream.port or 80))
        self._http = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self.server = replace(server, endpoint=self.endpoint)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def start(self) -> None:
        """Take requests from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Drop all connections and end."""
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.drop_connections()
        self._http.server_close()

    def environment(self) -> contextlib.AbstractContextManager[None]:
        """Make this proxy the S3 server that this process's clients find."""
        return self.server.environment()

    def new_directory(self) -> str:
        """The URL of a directory that no other test uses."""
        return self.server.new_directory()

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than the proxy runs."""
        self._stopping.wait(seconds)

    def flipped(self, data: bytes) -> bytes:
        """`data` with one bit changed."""
        damaged = bytearray(data)
        damaged[self._seed_bits.randrange(len(damaged))] ^= 1 << self._seed_bits.randrange(8)
        return bytes(damaged)


@contextlib.contextmanager
def fault_proxy(
    server: S3Server, seed: int = 0, rules: Sequence[Rule] = ()
) -> Iterator[FaultProxy]:
    """Run a proxy in front of a server, on threads of this process."""
    proxy = FaultProxy(server, seed)
    proxy.add(*rules)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture
def moto_proxy(moto_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of moto that this process's clients find."""
    with fault_proxy(moto_server) as proxy, proxy.environment():
        yield proxy


@pytest.fixture
def rgw_proxy(rgw_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of Ceph's S3 server that this process's clients find."""
    with fault_proxy(rgw_server) as proxy, proxy.environment():
        yield proxy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._connections_lock:
                self._connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections break here all the time, and on purpose."""

    def drop_connections(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@dataclass
class _Answer:
    """What the server said: the head as it goes to the client, and the body."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def head(self, content_length: int | None) -> bytes:
        """Status line and headers; `content_length` None keeps the server's own."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        for name, value in self.headers:
            if name.lower() != "content-length" or content_length is None:
                lines.append(f"{name}: {value}")
        if content_length is not None:
            lines.append(f"Content-Length: {content_length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def finish(self) -> None:
        self._drop_upstream()
        with contextlib.suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._request_body()
        if self.path.startswith(CONTROL_PATH):
            self._control(body)
        else:
            self._pass(body)

    def handle_expect_100(self) -> bool:
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _request_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client went away")
        return body

    def _control(self, body: bytes) -> None:
        proxy = self.server.proxy
        result: object = None
        if self.command == "POST":
            proxy.add(*(Rule(**values) for values in json.loads(body)))
        elif self.command == "DELETE":
            proxy.clear()
        else:
            result = [asdict(event) for event in proxy.events()]
        data = json.dumps(result).encode()
        answer = _Answer(200, "OK", [("Content-Type", "application/json")], data)
        self.wfile.write(answer.head(len(data)) + data)

    def _pass(self, body: bytes) -> None:
        proxy = self.server.proxy
        rule = proxy.choose(self.command, self.path, len(body))
        fault = rule.fault if rule else None
        status = None
        if rule is not None and fault in _BEFORE:
            self._record(fault, None)
            self._refuse(rule)
            return
        if rule is not None and fault == "latency":
            proxy.wait(rule.seconds)
        if fault == "flip_request":
            body = proxy.flipped(body)
        answer = self._forward(body)
        status = answer.status
        if rule is not None and fault in _BODY and not (answer.body and status in (200, 206)):
            proxy.spared(rule)
            rule = fault = None
        self._record(fault, status)
        self._answer(rule, answer)

    def _refuse(self, rule: Rule) -> None:
        if rule.fault == "stall":
            self.server.proxy.wait(rule.seconds)
        if rule.fault not in _ERRORS:
            self._reset()
            return
        status, code, message = _ERRORS[rule.fault]
        data = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message>"
            "<RequestId>faults</RequestId></Error>"
        ).encode()
        headers = [("Content-Type", "application/xml"), ("x-amz-request-id", "faults")]
        answer = _Answer(status, http.client.responses.get(status, code), headers, data)
        self.wfile.write(answer.head(len(data)))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self, rule: Rule | None, answer: _Answer) -> None:
        fault = rule.fault if rule else None
        length = len(answer.body) if self.command != "HEAD" else None
        body = answer.body
        if rule is not None and fault in ("cut", "cut_head", "stall_answer"):
            if fault == "cut_head":
                head = answer.head(length)
                self.wfile.write(head[: len(head) // 2])
            if fault == "stall_answer":
                self.server.proxy.wait(rule.seconds)
            self._reset()
            return
        half = body[: len(body) // 2]
        if fault == "flip_answer":
            body = self.server.proxy.flipped(body)
        elif fault == "truncate_fitting":
            body, length = half, len(half)
        elif fault in ("truncate", "stall_body"):
            self.close_connection = True
            body = half
        self.wfile.write(answer.head(length) + body)
        if rule is not None and fault == "stall_body":
            self.server.proxy.wait(rule.seconds)
            self._reset()

    def _forward(self, body: bytes) -> _Answer:
        for attempt in range(2):
            connection = self._upstream or http.client.HTTPConnection(
                *self.server.proxy.upstream, timeout=UPSTREAM_TIMEOUT_S
            )
            is_fresh = self._upstream is None
            self._upstream = connection
            try:
                return self._exchange(connection, body)
            except (OSError, http.client.HTTPException):
                self._drop_upstream()
                # A kept connection may have been closed by the server before this request.
                if is_fresh or attempt:
                    raise
        raise AssertionError("unreachable")

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes) -> _Answer:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        dropped = {"connection", "transfer-encoding", "expect", "content-length", "keep-alive"}
        for name, value in self.headers.items():
            if name.lower() not in dropped:
                connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        with connection.getresponse() as response:
            data = response.read()
            if response.will_close:
                self._drop_upstream()
        dropped = {"connection", "transfer-encoding", "keep-alive"}
        headers = [(n, v) for n, v in response.getheaders() if n.lower() not in dropped]
        if self.command == "HEAD":
            # Without a length, a client would wait for a body until the connection ends.
            has_length = any(name.lower() == "content-length" for name, _ in headers)
            headers += [] if has_length else [("Content-Length", "0")]
        return _Answer(response.status, response.reason, headers, data)

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    def _record(self, fault: str | None, status: int | None) -> None:
        event = Event(self.command, self.path, fault, status, time.time())
        self.server.proxy.record(event)

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
