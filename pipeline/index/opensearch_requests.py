"""What is said to OpenSearch, as requests: made from rows and states. Sends and stores nothing.

An index's name is an alias. Behind it every state is an index of OpenSearch of its own, `<name>-`
and 32 hexadecimal digits: made new, or cloned from the last one, then filled, closed to writing,
and not changed again. One request turns the alias. A row's `_id` follows from what it is a row of,
so that a request may be repeated.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.index.config import OpenSearchSection
from pipeline.index.protocol import EXCERPT, VECTOR, Feed, IndexState

KIND = "opensearch"
# Key of a mapping's `_meta`; and in it, beside the keys of the state:
META, SECTION, BEFORE = "elmo", "opensearch", "before"
# OpenSearch takes no more, of neighbours and of hits.
MAX_HITS = 10_000
# Of a request that deletes: it has to be answered in time, whatever rows a document has.
MAX_GONE_IDS = 1000
# The text of the vectors of so many rows is in memory at once.
_SLICE_ROWS = 256
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_HEALTH_TIMEOUT = "120s"
_INT32 = range(-(1 << 31), 1 << 31)


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        method: of HTTP.
        path: after the server's address; quoted.
        body: JSON, or lines of JSON for `is_bulk`; empty for none.
        is_bulk: whether it is answered item by item.
        is_repeatable: whether it may be sent again when it is not known what became of it.
    """

    method: str
    path: str
    body: bytes = b""
    is_bulk: bool = False
    is_repeatable: bool = True

    @property
    def content_type(self) -> str:
        """Of the body."""
        return "application/x-ndjson" if self.is_bulk else "application/json"


@dataclass(frozen=True)
class Target:
    """Where the next state goes.

    Attributes:
        name: the alias.
        index: the new index.
        base: the index that the alias stands for now; None where nothing is known of one.
        before: indexes of earlier states that stay, newest first.
        gone: those that go when the alias is turned.
    """

    name: str
    index: str
    base: str | None
    before: tuple[str, ...]
    gone: tuple[str, ...]

    @classmethod
    def after(cls, name: str, base: str | None, before: Sequence[str], keep: int) -> Target:
        """The successor of the index `base`, before which there were others.

        Args:
            name: the alias.
            base: its index now; None where there is none.
            before: indexes that `base` left.
            keep: states that stay, the new one among them.
        """
        earlier = (() if base is None else (base,)) + tuple(before)
        # What has another name was put there by somebody else, who may remove it.
        states = tuple(index for index in earlier if is_index_of(name, index))
        index = f"{name}-{uuid.uuid4().hex}"
        return cls(name, index, base, states[: keep - 1], states[keep - 1 :])


def check_name(name: str) -> None:
    """Make sure that an alias can be called so.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"index.path: {name!r} cannot name an index: expected up to 63 of a-z 0-9 _, a letter "
            "first"
        )


def meta_of(state: IndexState, section: OpenSearchSection, before: Sequence[str]) -> dict[str, Any]:
    """What a mapping records of the state in its index; `state_of` reads it back."""
    settings = section.model_dump(mode="json")
    return {META: {**state.to_json(), SECTION: settings, BEFORE: list(before)}}


def state_of(meta: Any, where: str) -> tuple[IndexState, OpenSearchSection, tuple[str, ...]]:
    """What a mapping's `_meta` records: the state, how it is searched, the indexes that it left.

    Raises:
        ConfigError: it is no index of this package.
        CorruptFileError: it cannot be read.
    """
    found = meta.get(META) if isinstance(meta, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{where}: it is there already and does not say that it is an index of this package; "
            "give another name after '#', or remove it"
        )
    state = IndexState.from_json(found, where)
    if state.settings.get("kind") != KIND:
        raise CorruptFileError(f"{where}: it is not of kind {KIND}")
    section = OpenSearchSection.model_validate(found.get(SECTION, {}))
    return state, section, tuple(str(name) for name in found.get(BEFORE, ()))


def draft_requests(feed: Feed, target: Target, section: OpenSearchSection) -> Iterator[Request]:
    """All that makes the next state, in order, up to where it is complete and can be searched.

    Raises:
        ConfigError: a row does not fit into a request.
    """
    where = f"/{target.index}"
    meta = meta_of(feed.state, section, target.before)
    if feed.is_full:
        made = {"settings": _settings(section), "mappings": {"_meta": meta, **_mapping(feed)}}
        yield _json_request("PUT", where, made, is_repeatable=False)
    else:
        dynamic = _dynamic_settings(section)
        settings = {"settings": {**dynamic, "index.blocks.write": False}}
        clone = path_of(str(target.base), "_clone", target.index)
        yield _json_request("PUT", clone, settings, is_repeatable=False)
    health = f"/_cluster/health{where}?wait_for_status=yellow&timeout={_HEALTH_TIMEOUT}"
    yield Request("GET", health)
    for step in feed.steps():
        for start in range(0, len(step.gone_ids), MAX_GONE_IDS):
            ids = step.gone_ids[start : start + MAX_GONE_IDS].to_pylist()
            query = {"query": {"terms": {"id": ids}}}
            # Nobody else writes here: a conflict is a row that left when this was sent before.
            yield _json_request("POST", f"{where}/_delete_by_query?conflicts=proceed", query)
        for body in bulk_bodies(step.rows(), section.max_request_bytes):
            yield Request("POST", f"{where}/_bulk", body, is_bulk=True)
    yield Request("POST", f"{where}/_refresh")
    if not feed.is_full:
        yield _json_request("PUT", f"{where}/_mapping", {"_meta": meta})
    # Only what is closed to writing can be cloned.
    yield _json_request("PUT", f"{where}/_settings", {"index.blocks.write": True})


def turn_request(target: Target, claim: str | None = None) -> Request:
    """What turns the alias to the new index; it is refused as a whole, or done as a whole.

    Args:
        target: whose `base` the alias must still stand for.
        claim: where that is None: an index that must be there, and is removed; None to take the
            alias from whatever it stands for.
    """
    alias: dict[str, Any] = {"alias": target.name}
    if target.base is not None:
        first = {"remove": {"index": target.base, **alias, "must_exist": True}}
    elif claim is not None:
        first = {"remove_index": {"index": claim}}
    else:
        first = {"remove": {"index": f"{target.name}-*", **alias, "must_exist": False}}
    actions = {"actions": [first, {"add": {"index": target.index, **alias}}]}
    return _json_request("POST", "/_aliases", actions, is_repeatable=False)


def claim_request(name: str) -> Request:
    """What claims a name that nothing was published under: the first alias takes it away."""
    settings = {"settings": {"index.number_of_shards": 1, "index.number_of_replicas": 0}}
    return _json_request("PUT", f"/{claim_of(name)}", settings, is_repeatable=False)


def claim_of(name: str) -> str:
    """The index that stands for the claim."""
    return f"{name}-{'0' * 32}"


def is_index_of(name: str, index: str) -> bool:
    """Whether an index is a state behind this alias, or a claim to it."""
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{32}}", index) is not None


def removal_request(index: str) -> Request:
    """What removes an index; one that is not there is no error."""
    return Request("DELETE", f"/{index}?ignore_unavailable=true")


def bulk_bodies(batches: Iterator[pa.RecordBatch], max_bytes: int) -> Iterator[bytes]:
    """Bodies of `_bulk` that index rows, as large as they may be.

    Raises:
        ConfigError: a row alone is larger.
    """
    parts: list[bytes] = []
    num_bytes = 0
    for batch in batches:
        for id_, action, source in _rows(batch):
            size = len(action) + len(source)
            if size > max_bytes:
                raise ConfigError(
                    f"opensearch.max_request_bytes: a row of document {id_!r} needs {size:,} "
                    f"bytes, {max_bytes:,} are allowed"
                )
            if num_bytes + size > max_bytes:
                yield b"".join(parts)
                parts, num_bytes = [], 0
            parts += (action, source)
            num_bytes += size
    if parts:
        yield b"".join(parts)


def conditions_of(where: Mapping[str, str | None], integers: set[str]) -> list[dict[str, Any]]:
    """The queries that rows with these values match, `integers` being columns of numbers."""
    return [_condition(name, value, integers) for name, value in where.items()]


def search_body(
    query_D: Sequence[float], num_hits: int, depth: int, conditions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The rows nearest to a query.

    Args:
        query_D: of length 1.
        num_hits: rows wanted; MAX_HITS at most come.
        depth: candidates that are looked at: engines differ in what else tells them.
        conditions: that a row must meet; of `conditions_of`.
    """
    neighbours = min(max(num_hits, depth), MAX_HITS)
    knn: dict[str, Any] = {"vector": list(query_D), "k": neighbours}
    if conditions:
        knn["filter"] = {"bool": {"must": list(conditions)}}
    return {
        "size": min(num_hits, MAX_HITS),
        "query": {"knn": {VECTOR: knn}},
        "_source": {"excludes": [VECTOR]},
    }


def cosine_of(score: float) -> float:
    """The inner product that OpenSearch made a score of, which must be positive there."""
    return score - 1 if score >= 1 else 1 - 1 / score


def integer_columns(mapping: Mapping[str, Any]) -> set[str]:
    """Of a mapping's properties, those that are whole numbers."""
    return {name for name, field in mapping.items() if field.get("type") == "integer"}


def path_of(*parts: str) -> str:
    """The path of these parts, quoted."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _json_request(
    method: str, path: str, body: Mapping[str, Any], *, is_repeatable: bool = True
) -> Request:
    data = json.dumps(body, ensure_ascii=False).encode()
    return Request(method, path, data, is_repeatable=is_repeatable)


def _settings(section: OpenSearchSection) -> dict[str, Any]:
    return {
        "index.knn": True,
        "index.number_of_shards": section.num_shards,
        # What is published does not change: a refresh after it was filled is the only one.
        "index.refresh_interval": "-1",
        **_dynamic_settings(section),
    }


def _dynamic_settings(section: OpenSearchSection) -> dict[str, Any]:
    return {
        "index.number_of_replicas": section.num_replicas,
        "index.knn.algo_param.ef_search": section.search_depth,
    }


def _mapping(feed: Feed) -> dict[str, Any]:
    section = feed.state.settings
    properties: dict[str, Any] = {}
    for field in feed.schema:
        if field.name == VECTOR:
            method = {
                "name": "hnsw",
                # Vectors have length 1, so that this is the cosine; one of zeros has none.
                "space_type": "innerproduct",
                "engine": section["engine"],
                "parameters": {
                    "m": section["num_links"],
                    "ef_construction": section["build_depth"],
                },
            }
            dim = field.type.list_size
            properties[VECTOR] = {"type": "knn_vector", "dimension": dim, "method": method}
        elif field.name == EXCERPT:
            properties[EXCERPT] = {"type": "keyword", "index": False, "doc_values": False}
        else:
            kind = "integer" if pa.types.is_integer(field.type) else "keyword"
            properties[field.name] = {"type": kind}
    return {"dynamic": "strict", "properties": properties}


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[str, bytes, bytes]]:
    """Of each row: the document, the action's line, and the row's."""
    plain = [name for name in batch.schema.names if name != VECTOR]
    for start in range(0, batch.num_rows, _SLICE_ROWS):
        part = batch.slice(start, _SLICE_ROWS)
        vectors = _vector_texts(part[VECTOR])
        for values, vector in zip(part.select(plain).to_pylist(), vectors, strict=True):
            key = [values.get(name) for name in ("id", "sentence_index", "token_index")]
            # Of any document a short one: OpenSearch allows 512 bytes.
            digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
            action = f'{{"index":{{"_id":"{digest}"}}}}\n'
            text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
            source = f'{text[:-1]},"{VECTOR}":[{vector}]}}\n'
            yield values["id"], action.encode(), source.encode()


def _vector_texts(column: pa.FixedSizeListArray) -> list[str]:
    """The elements of each vector, in the fewest digits that tell them, with commas between."""
    dim = column.type.list_size
    texts = column.flatten().cast(pa.string())
    offsets = pa.array(np.arange(0, len(texts) + 1, dim, dtype=np.int32))
    joined: list[str] = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",").to_pylist()
    return joined


def _condition(name: str, value: str | None, integers: set[str]) -> dict[str, Any]:
    if value is None:
        return {"bool": {"must_not": [{"exists": {"field": name}}]}}
    if name not in integers:
        return {"term": {name: value}}
    is_number = re.fullmatch(r"-?\d{1,10}", value) is not None and int(value) in _INT32
    return {"term": {name: int(value)}} if is_number else {"match_none": {}}
