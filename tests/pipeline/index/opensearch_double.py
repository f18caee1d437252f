"""A server that answers as OpenSearch is documented to, and refuses whatever is not documented.

It has the requests that `pipeline.index` makes, with what the documentation says of them: what a
line of `_bulk` must be, what is atomic, what a refresh shows, what is refused (`opensearch_rules`).
It looks at every vector, so that its answers are exact. It proves no more than that the requests
are as documented.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.pipeline.index.opensearch_rules import (
    MAX_WINDOW,
    Refusal,
    check_index_name,
    check_mapping,
    check_row,
    check_time,
    flat_settings,
    matches,
    nearest,
    one_object,
)

MAX_CONTENT_BYTES = 100 << 20
MAX_ID_BYTES = 512
STATIC_SETTINGS = {"index.knn", "index.number_of_shards"}
SHARDS = {"total": 1, "successful": 1, "failed": 0}


@dataclass
class Index:
    """An index; a row is seen by searches from the next refresh on."""

    name: str
    settings: dict[str, Any]
    mapping: dict[str, Any]
    aliases: set[str] = field(default_factory=set)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    created_ms: int = field(default_factory=lambda: int(time.time() * 1000))

    @property
    def is_closed_to_writing(self) -> bool:
        return self.settings.get("index.blocks.write") is True


@dataclass
class Fault:
    """What happens to the next `count` requests that match.

    A status is answered, and the request is done only with `is_done`; without one it is done, and
    the connection ends without an answer.
    """

    method: str
    path: str
    count: int = 1
    status: int | None = None
    is_done: bool = False
    location: str | None = None


class OpenSearch:
    """The state of the server, and its requests as functions."""

    def __init__(self) -> None:
        self.indexes: dict[str, Index] = {}
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.num_busy_rows = 0
        self.user: tuple[str, str] | None = None
        self.log: list[tuple[str, str, int]] = []
        self.routes: list[tuple[str, str, Callable[..., dict[str, Any]]]] = [
            ("POST", r"/_aliases", self.turn_aliases),
            ("GET", r"/_cluster/health/([^/]+)", self.health),
            ("PUT", r"/([^/_][^/]*)", self.create),
            ("DELETE", r"/([^/_][^/]*)", self.delete),
            ("PUT|POST", r"/([^/]+)/_clone/([^/]+)", self.clone),
            ("POST", r"/([^/]+)/_bulk", self.bulk),
            ("POST", r"/([^/]+)/_refresh", self.refresh),
            ("POST", r"/([^/]+)/_delete_by_query", self.delete_by_query),
            ("GET", r"/([^/]+)/_count", self.count),
            ("GET|POST", r"/([^/]+)/_search", self.search),
            ("GET", r"/([^/]+)/_mapping", self.get_mapping),
            ("PUT", r"/([^/]+)/_mapping", self.put_mapping),
            ("GET", r"/([^/]+)/_settings(?:/([^/]+))?", self.get_settings),
            ("PUT", r"/([^/]+)/_settings", self.put_settings),
        ]

    def answer(self, call: Call) -> dict[str, Any]:
        for methods, pattern, function in self.routes:
            match = re.fullmatch(pattern, call.path)
            if match and call.method in methods.split("|"):
                with self.lock:
                    return function(call, *match.groups())
        raise Refusal(405, "method_not_allowed", f"{call.method} {call.path} is not documented")

    def named(self, name: str) -> list[Index]:
        """The indexes that a name, an alias or a pattern stands for."""
        found = [i for i in self.indexes.values() if i.name == name or name in i.aliases]
        if "*" in name:
            return [i for i in self.indexes.values() if fnmatchcase(i.name, name)]
        if not found:
            raise Refusal(404, "index_not_found_exception", f"no such index [{name}]")
        return found

    def one(self, name: str) -> Index:
        found = self.named(name)
        if len(found) != 1:
            raise Refusal(400, "illegal_argument_exception", f"{name} stands for several indexes")
        return found[0]

    def create(self, call: Call, name: str) -> dict[str, Any]:
        body = call.json({"settings", "mappings", "aliases"})
        check_index_name(name)
        self.check_free(name)
        settings = flat_settings(body.get("settings", {}))
        mapping = body.get("mappings", {})
        check_mapping(mapping, settings)
        self.indexes[name] = Index(name, settings, mapping, set(body.get("aliases", {})))
        return {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def check_free(self, name: str) -> None:
        if name in self.indexes:
            reason = f"index [{name}] already exists"
            raise Refusal(400, "resource_already_exists_exception", reason)
        if any(name in index.aliases for index in self.indexes.values()):
            raise Refusal(400, "invalid_index_name_exception", f"[{name}] exists as an alias")

    def delete(self, call: Call, name: str) -> dict[str, Any]:
        ignored = call.parameter("ignore_unavailable", "false") == "true"
        if name in self.indexes:
            del self.indexes[name]
        elif any(name in index.aliases for index in self.indexes.values()):
            raise Refusal(400, "illegal_argument_exception", f"[{name}] is an alias")
        elif not ignored:
            raise Refusal(404, "index_not_found_exception", f"no such index [{name}]")
        return {"acknowledged": True}

    def clone(self, call: Call, source: str, name: str) -> dict[str, Any]:
        index = self.one(source)
        body = call.json({"settings", "aliases"})
        if not index.is_closed_to_writing:
            reason = (
                f"index {source} must be read-only to resize index. use index.blocks.write=true"
            )
            raise Refusal(400, "illegal_state_exception", reason)
        check_index_name(name)
        self.check_free(name)
        changed = flat_settings(body.get("settings", {}))
        shards = changed.get("index.number_of_shards", index.settings["index.number_of_shards"])
        if shards != index.settings["index.number_of_shards"]:
            raise Refusal(400, "illegal_argument_exception", "the number of shards must be equal")
        settings = {**index.settings, **changed}
        mapping, rows = copy.deepcopy(index.mapping), dict(index.rows)
        self.indexes[name] = Index(name, settings, mapping, rows=rows, seen=dict(rows))
        return {"acknowledged": True, "shards_acknowledged": False, "index": name}

    def health(self, call: Call, name: str) -> dict[str, Any]:
        self.one(name)
        if call.parameter("wait_for_status", "green") not in ("green", "yellow", "red"):
            raise Refusal(400, "illegal_argument_exception", "unknown status")
        check_time(call.parameter("timeout", "30s"))
        return {"cluster_name": "double", "status": "yellow", "timed_out": False}

    def bulk(self, call: Call, name: str) -> dict[str, Any]:
        index = self.one(name)
        if call.content_type != "application/x-ndjson":
            raise Refusal(406, "content_type", f"{call.content_type} is not application/x-ndjson")
        if not call.body.endswith(b"\n"):
            raise Refusal(400, "illegal_argument_exception", "must be terminated by a newline")
        lines = iter(call.body[:-1].split(b"\n"))
        items = []
        for line in lines:
            ((action, meta),) = one_object(line).items()
            known = {"_index", "_id", "routing", "version", "version_type"}
            if action not in ("index", "create", "delete") or not set(meta) <= known:
                raise Refusal(400, "illegal_argument_exception", f"malformed action {line!r}")
            source = None if action == "delete" else one_object(next(lines, b""))
            items.append({action: self.item(index, action, meta, source)})
        has_errors = any("error" in result for item in items for result in item.values())
        return {"took": 1, "errors": has_errors, "items": items}

    def item(
        self, index: Index, action: str, meta: Mapping[str, Any], source: dict[str, Any] | None
    ) -> dict[str, Any]:
        id_ = meta.get("_id", uuid.uuid4().hex)
        result = {"_index": index.name, "_id": id_}
        try:
            if self.num_busy_rows:
                self.num_busy_rows -= 1
                raise Refusal(429, "rejected_execution_exception", "the queue is full")
            if index.is_closed_to_writing:
                raise Refusal(403, "cluster_block_exception", f"index [{index.name}] blocked")
            if len(id_.encode()) > MAX_ID_BYTES:
                raise Refusal(400, "illegal_argument_exception", "id is too long")
            if source is None:
                gone = index.rows.pop(id_, None)
                found = ("deleted", 200) if gone is not None else ("not_found", 404)
            else:
                if action == "create" and id_ in index.rows:
                    raise Refusal(409, "version_conflict_engine_exception", "document exists")
                check_row(source, index.mapping)
                found = ("updated", 200) if id_ in index.rows else ("created", 201)
                index.rows[id_] = source
        except Refusal as refusal:
            return {**result, "status": refusal.status, "error": refusal.error()}
        return {**result, "result": found[0], "status": found[1], "_shards": SHARDS}

    def refresh(self, call: Call, name: str) -> dict[str, Any]:
        for index in self.named(name):
            index.seen = dict(index.rows)
        return {"_shards": SHARDS}

    def delete_by_query(self, call: Call, name: str) -> dict[str, Any]:
        index = self.one(name)
        if index.is_closed_to_writing:
            raise Refusal(403, "cluster_block_exception", f"index [{name}] blocked")
        query = call.json({"query"})["query"]
        gone = [id_ for id_, row in index.seen.items() if matches(row, query, index.mapping)]
        conflicts = call.parameter("conflicts", "abort")
        if conflicts not in ("abort", "proceed"):
            raise Refusal(400, "illegal_argument_exception", f"conflicts {conflicts}")
        # What was changed or removed since the last refresh.
        changed = [id_ for id_ in gone if index.rows.get(id_) is not index.seen[id_]]
        if changed and conflicts == "abort":
            raise Refusal(409, "version_conflict_engine_exception", f"{len(changed)} rows changed")
        for id_ in set(gone) - set(changed):
            del index.rows[id_]
        return {
            "took": 1,
            "timed_out": False,
            "total": len(gone),
            "deleted": len(gone) - len(changed),
            "version_conflicts": len(changed),
            "failures": [],
        }

    def count(self, call: Call, name: str) -> dict[str, Any]:
        return {"count": sum(len(i.seen) for i in self.named(name)), "_shards": SHARDS}

    def search(self, call: Call, name: str) -> dict[str, Any]:
        index = self.one(name)
        body = call.json({"size", "query", "_source"})
        size = body.get("size", 10)
        if not 0 <= size <= MAX_WINDOW:
            raise Refusal(400, "illegal_argument_exception", "result window is too large")
        ((kind, query),) = body["query"].items()
        if kind != "knn":
            raise Refusal(400, "parsing_exception", f"unknown query [{kind}]")
        excluded = set(body.get("_source", {}).get("excludes", ()))
        hits = [
            {
                "_index": index.name,
                "_id": id_,
                "_score": score,
                "_source": {k: v for k, v in index.seen[id_].items() if k not in excluded},
            }
            for score, id_ in nearest(index.seen, query, index.mapping)[:size]
        ]
        return {"took": 1, "timed_out": False, "_shards": SHARDS, "hits": {"hits": hits}}

    def get_mapping(self, call: Call, name: str) -> dict[str, Any]:
        return {index.name: {"mappings": index.mapping} for index in self.named(name)}

    def put_mapping(self, call: Call, name: str) -> dict[str, Any]:
        body = call.json({"_meta"})
        for index in self.named(name):
            index.mapping.update(body)
        return {"acknowledged": True}

    def get_settings(self, call: Call, name: str, which: str | None) -> dict[str, Any]:
        if which not in (None, "index.creation_date"):
            raise Refusal(400, "illegal_argument_exception", f"unknown setting {which}")
        created = {i.name: {"creation_date": str(i.created_ms)} for i in self.named(name)}
        return {name: {"settings": {"index": values}} for name, values in created.items()}

    def put_settings(self, call: Call, name: str) -> dict[str, Any]:
        changed = flat_settings(call.json())
        if STATIC_SETTINGS & set(changed):
            raise Refusal(400, "illegal_argument_exception", "can't update static settings")
        for index in self.named(name):
            index.settings.update(changed)
        return {"acknowledged": True}

    def turn_aliases(self, call: Call) -> dict[str, Any]:
        body = call.json({"actions"})
        after = {name: set(index.aliases) for name, index in self.indexes.items()}
        for action in body["actions"]:
            ((kind, values),) = action.items()
            known = {"add": {"index", "alias"}, "remove": {"index", "alias", "must_exist"}}
            if not set(values) <= known.get(kind, {"index"}):
                raise Refusal(400, "x_content_parse_exception", f"[{kind}] unknown field")
            indexes = [index.name for index in self.named(values["index"])]
            if kind == "remove_index":
                for name in indexes:
                    del after[name]
            elif kind == "add":
                self.add_alias(after, indexes, values["alias"])
            else:
                remove_alias(after, indexes, values["alias"], bool(values.get("must_exist")))
        self.indexes = {name: self.indexes[name] for name in after}
        for name, aliases in after.items():
            self.indexes[name].aliases = aliases
        return {"acknowledged": True}

    def add_alias(self, after: dict[str, set[str]], indexes: list[str], alias: str) -> None:
        check_index_name(alias)
        if alias in self.indexes:
            raise Refusal(400, "invalid_alias_name_exception", f"an index is called {alias}")
        for name in indexes:
            after[name].add(alias)


def remove_alias(
    after: dict[str, set[str]], indexes: list[str], alias: str, must_exist: bool
) -> None:
    there = [name for name in indexes if alias in after[name]]
    if must_exist and not there:
        raise Refusal(404, "aliases_not_found_exception", f"aliases [{alias}] missing")
    for name in there:
        after[name].discard(alias)


@dataclass
class Call:
    """One request as it came."""

    method: str
    path: str
    parameters: dict[str, list[str]]
    content_type: str | None
    body: bytes

    def json(self, keys: set[str] | None = None) -> dict[str, Any]:
        """The body, an object with no other keys."""
        if self.body and self.content_type != "application/json":
            raise Refusal(406, "content_type", f"{self.content_type} is not application/json")
        found = one_object(self.body) if self.body else {}
        if keys is not None and not set(found) <= keys:
            raise Refusal(400, "parse_exception", f"unknown key in {sorted(found)}")
        return found

    def parameter(self, name: str, default: str) -> str:
        return self.parameters.pop(name, [default])[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def handle_any(self) -> None:
        state = self.server.state
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        state.log.append((self.command, self.path, len(body)))
        fault = next((f for f in state.faults if self.is_hit(f)), None)
        if fault is not None:
            fault.count -= 1
            if fault.status is not None and not fault.is_done:
                error = {"error": {"type": "fault", "reason": "asked for"}, "status": fault.status}
                self.reply(fault.status, error, fault.location)
                return
        status, answer = self.answered(state, parts.path, parts.query, body)
        if fault is None:
            self.reply(status, answer)
        elif fault.status is not None:
            self.reply(fault.status, {"error": "done, but not said"})
        self.close_connection = self.close_connection or fault is not None

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def is_hit(self, fault: Fault) -> bool:
        is_path = re.search(fault.path, self.path) is not None
        return fault.count > 0 and self.command == fault.method and is_path

    def answered(
        self, state: OpenSearch, path: str, query: str, body: bytes
    ) -> tuple[int, dict[str, Any]]:
        try:
            if "Transfer-Encoding" in self.headers:
                raise Refusal(400, "illegal_argument_exception", "chunks are not efficient")
            if state.user is not None:
                encoded = base64.b64encode(":".join(state.user).encode()).decode()
                if self.headers.get("Authorization") != f"Basic {encoded}":
                    raise Refusal(401, "security_exception", "Unauthorized")
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if len(body) > MAX_CONTENT_BYTES:
                raise Refusal(413, "too_large", "Request Entity Too Large")
            parameters = parse_qs(query, strict_parsing=True) if query else {}
            content_type = self.headers.get("Content-Type")
            call = Call(self.command, unquote(path), parameters, content_type, body)
            answer = state.answer(call)
            if call.parameters:
                reason = f"unrecognized parameters {sorted(call.parameters)}"
                raise Refusal(400, "illegal_argument_exception", reason)
        except Refusal as refusal:
            return refusal.status, {"error": refusal.error(), "status": refusal.status}
        except (KeyError, TypeError, ValueError) as error:
            return 400, {"error": {"type": "parse_exception", "reason": repr(error)}, "status": 400}
        return 200, answer

    def reply(self, status: int, answer: Mapping[str, Any], location: str | None = None) -> None:
        data = json.dumps(answer, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    state: OpenSearch


def start() -> tuple[str, OpenSearch, Callable[[], None]]:
    """A running server: its URL, its state, and what ends it."""
    server = Server(("127.0.0.1", 0), Handler)
    server.state = OpenSearch()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{server.server_port}", server.state, end
