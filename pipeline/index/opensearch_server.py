"""A server of OpenSearch: requests are sent, and every answer is looked at. Knows no index.

A busy server (429, 502 to 504) is asked again, later each time; so is one whose connection breaks,
where the request may be repeated. Rows that a server was too busy for are sent again alone.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import (
    ConfigError,
    CorruptFileError,
    MissingFileError,
    StorageError,
    UnknownOutcomeError,
)
from pipeline.index.opensearch_requests import Request, check_name
from pipeline.redaction import redact_message
from pipeline.storage_urls import has_credentials

DEFAULT_NAME = "elmo"
USER, PASSWORD = "OPENSEARCH_USERNAME", "OPENSEARCH_PASSWORD"
TIMEOUT_S = 300
# Doubled each time: a busy server is waited for for 102 s in all, a broken connection for 0.6 s.
FIRST_WAIT_S = 0.2
BUSY_ATTEMPTS, BROKEN_ATTEMPTS = 10, 3
_BUSY = (429, 502, 503, 504)
# A bulk answer of 10 MiB of rows without vectors is smaller.
MAX_ANSWER_BYTES = 256 << 20


class OpenSearchServer:
    """One server, or one address of a cluster."""

    def __init__(self, url: str, *, compress: bool = False) -> None:
        """Talk to the server at `url`; nothing is connected yet.

        Args:
            url: without a name, as `split_url` gives it.
            compress: send bodies of rows compressed.

        Raises:
            ConfigError: there is a user without a password, or the other way round.
        """
        self.url = url
        self._compress = compress
        self._headers = {"Accept": "application/json"}
        user, password = os.environ.get(USER), os.environ.get(PASSWORD)
        if (user is None) is not (password is None):
            raise ConfigError(f"{USER} and {PASSWORD}: expected both or none, found one of them")
        if user is not None:
            encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {encoded}"
        self._opener = urllib.request.build_opener(_NoRedirects)

    def get(self, path: str) -> dict[str, Any]:
        """Ask for something.

        Raises:
            MissingFileError: it is not there.
        """
        return self.send(Request("GET", path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for something by a body; a request that changes nothing."""
        return self.send(Request("POST", path, json.dumps(body).encode()))

    def send(self, request: Request) -> dict[str, Any]:
        """Send a request until it is answered, and make sure that all of it was done.

        Raises:
            ConfigError: the server refuses it, or a row of it; or the user.
            MissingFileError: the server has no such thing.
            StorageError: the server cannot be reached, fails, or did not do all of it.
            UnknownOutcomeError: the connection broke, and the request may have been carried out.
        """
        attempt = 1
        while True:
            answer = self._answered(request)
            self._check(request, answer)
            left = self._left_of(request, answer) if request.is_bulk else None
            if left is None:
                return answer
            if attempt == BUSY_ATTEMPTS:
                raise StorageError(
                    f"{self.url}{request.path}: the server was too busy for a row in "
                    f"{attempt} attempts: {_reason(_first_error(answer))}; run again later"
                )
            _wait(attempt)
            request, attempt = left, attempt + 1

    def _answered(self, request: Request) -> dict[str, Any]:
        """The answer of status 200 or 201."""
        attempt = 1
        while True:
            where = f"{self.url}{request.path}"
            try:
                return self._once(request)
            except urllib.error.HTTPError as error:
                with error:
                    status, said = error.code, _said(error)
                is_last = attempt == BUSY_ATTEMPTS or status not in _BUSY
                # Only 429 says that nothing was done.
                if is_last or (status != 429 and not request.is_repeatable):
                    raise _refused(request, status, f"{where}: {said}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                message = f"{where}: OpenSearch: {redact_message(str(reason) or repr(reason))}"
                if not request.is_repeatable and not _is_refused_connection(reason):
                    raise UnknownOutcomeError(message) from error
                if attempt == BROKEN_ATTEMPTS:
                    raise StorageError(message) from error
            _wait(attempt)
            attempt += 1

    def _once(self, request: Request) -> dict[str, Any]:
        headers = dict(self._headers)
        body = request.body
        if body:
            headers["Content-Type"] = request.content_type
        if request.is_bulk and self._compress:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1, mtime=0)
        sent = urllib.request.Request(
            self.url + request.path, data=body or None, headers=headers, method=request.method
        )
        with self._opener.open(sent, timeout=TIMEOUT_S) as answer:
            data = answer.read(MAX_ANSWER_BYTES + 1)
        try:
            found = json.loads(data) if len(data) <= MAX_ANSWER_BYTES else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StorageError(
                f"{self.url}{request.path}: an answer in JSON was expected, found "
                f"{data[:80]!r}; is this a server of OpenSearch?"
            )
        return found

    def _check(self, request: Request, answer: Mapping[str, Any]) -> None:
        """Make sure that an answer does not say of itself that a part is missing."""
        shards = answer.get("_shards")
        problems = [
            answer.get("acknowledged") is False and "not acknowledged in time",
            answer.get("timed_out") is True and "timed out",
            bool(answer.get("failures")) and f"failures: {json.dumps(answer.get('failures'))}",
            isinstance(shards, dict) and bool(shards.get("failed")) and "a shard failed",
        ]
        found = [problem for problem in problems if problem]
        if found:
            said = redact_message(f"{'; '.join(map(str, found))[:500]}")
            raise StorageError(f"{self.url}{request.path}: OpenSearch: {said}")

    def _left_of(self, request: Request, answer: Mapping[str, Any]) -> Request | None:
        """The rows that the server was too busy for; None where all were indexed.

        Raises:
            ConfigError: a row was rejected.
            CorruptFileError: the answer is not one of these rows.
        """
        lines = request.body.splitlines(keepends=True)
        items = answer.get("items")
        if not isinstance(items, list) or 2 * len(items) != len(lines):
            raise CorruptFileError(
                f"{self.url}{request.path}: {len(lines) // 2} rows were sent, the answer does not "
                "have as many items; is this a server of OpenSearch?"
            )
        left: list[bytes] = []
        for position, item in enumerate(items):
            result = item.get("index", {})
            status = result.get("status", 0)
            if status in (200, 201):
                continue
            source = lines[2 * position + 1]
            if status not in _BUSY:
                raise ConfigError(
                    f"{self.url}{request.path}: OpenSearch rejects {_described(source)}: status "
                    f"{status}, {_reason(result.get('error'))}; nothing was published"
                )
            left += (lines[2 * position], source)
        return replace(request, body=b"".join(left)) if left else None


def split_url(url: str) -> tuple[str, str]:
    """A server's address, and the index's name: `https://host:9200#name`.

    Raises:
        ConfigError: the URL holds a user or a password, or a name that cannot be one.
    """
    address, _, name = url.partition("#")
    parts = urlsplit(address)
    if has_credentials(url) or parts.username is not None or parts.query:
        raise ConfigError(
            "index.path: expected https://host:9200#name, found a user, a password or parameters "
            f"in it; give a user by the environment ({USER}, {PASSWORD})"
        )
    if not parts.hostname:
        raise ConfigError("index.path: expected https://host:9200#name, found no host")
    name = name or DEFAULT_NAME
    check_name(name)
    return address.rstrip("/"), name


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: the user's password would go with it to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _wait(attempt: int) -> None:
    time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))


def _is_refused_connection(reason: object) -> bool:
    return isinstance(reason, ConnectionRefusedError)


def _refused(request: Request, status: int, message: str) -> Exception:
    message = f"{message} (status {status})"
    if status in (401, 403):
        return ConfigError(f"{message}; a user is given by {USER} and {PASSWORD}")
    if status == 404:
        return MissingFileError(message)
    if status == 413:
        return ConfigError(f"{message}; lower opensearch.max_request_bytes")
    if status >= 500 and not request.is_repeatable:
        return UnknownOutcomeError(message)
    return (
        StorageError(message)
        if status in (408, 409, 429) or status >= 500
        else (ConfigError(message))
    )


def _said(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, on one line."""
    data = error.read(1 << 20)
    try:
        found = json.loads(data)
    except ValueError:
        return redact_message(" ".join(data.decode(errors="replace").split())[:300] or error.reason)
    return _reason(found.get("error", found) if isinstance(found, dict) else found)


def _reason(error: Any) -> str:
    """Type and reason of an error of OpenSearch, and those of its cause."""
    parts = []
    while isinstance(error, dict):
        parts.append(": ".join(str(error[key]) for key in ("type", "reason") if key in error))
        error = error.get("caused_by")
    text = "; caused by ".join(parts) if parts else str(error)
    return redact_message(" ".join(text.split())[:500])


def _first_error(answer: Mapping[str, Any]) -> Any:
    items = [item.get("index", {}) for item in answer.get("items", ())]
    return next((item["error"] for item in items if item.get("error")), None)


def _described(source: bytes) -> str:
    values = json.loads(source)
    places = [f"{key} {values[key]}" for key in ("sentence_index", "token_index") if key in values]
    return " ".join([f"a row of document {values['id']!r}", *places])
