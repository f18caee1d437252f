"""What the documentation of OpenSearch allows: names, mappings, rows and queries. Knows no server.

Of 2.13 and later, and of the requests that `pipeline.index` makes; the rest is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_TERM_BYTES = 32766
MAX_TERMS = 65_536
MAX_WINDOW = 10_000
SPACES = {"faiss": {"l2", "innerproduct"}, "lucene": {"l2", "cosinesimil", "innerproduct"}}
SETTINGS = {
    "index.knn",
    "index.knn.algo_param.ef_search",
    "index.number_of_shards",
    "index.number_of_replicas",
    "index.refresh_interval",
    "index.blocks.write",
}


class Refusal(Exception):
    """An error that the server answers with."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.kind, self.reason = status, kind, reason

    def error(self) -> dict[str, Any]:
        return {"type": self.kind, "reason": self.reason}


def one_object(line: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        found = json.loads(line.decode(), parse_constant=refuse)
    except ValueError as error:
        raise Refusal(400, "parse_exception", f"{error} in {line[:80]!r}") from None
    if not isinstance(found, dict):
        raise Refusal(400, "parse_exception", f"no object: {line[:80]!r}")
    return found


def check_index_name(name: str) -> None:
    if not re.fullmatch(r'[^-_+A-Z\s,:"*/\\|?#<>][^A-Z\s,:"*/\\|?#<>]{0,254}', name):
        raise Refusal(400, "invalid_index_name_exception", f"Invalid index name [{name}]")


def check_time(text: str) -> None:
    if not re.fullmatch(r"\d+(ms|s|m|h)", text):
        raise Refusal(400, "parse_exception", f"no unit of time in {text}")


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    if not set(settings) <= SETTINGS:
        raise Refusal(400, "settings_exception", f"unknown setting in {sorted(settings)}")
    return dict(settings)


def check_mapping(mapping: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if not set(mapping) <= {"_meta", "dynamic", "properties"}:
        raise Refusal(400, "mapper_parsing_exception", "unsupported parameter")
    allowed = {"keyword": {"index", "doc_values"}, "integer": set()}
    for name, values in mapping.get("properties", {}).items():
        kind = values["type"]
        if kind != "knn_vector":
            if not set(values) - {"type"} <= allowed.get(kind, set()) or kind not in allowed:
                raise Refusal(400, "mapper_parsing_exception", f"[{name}] {values}")
            continue
        method = values["method"]
        parameters = method["parameters"]
        is_right = (
            settings.get("index.knn") is True
            and set(values) == {"type", "dimension", "method"}
            and 1 <= values["dimension"] <= 16_000
            and set(method) == {"name", "space_type", "engine", "parameters"}
            and method["name"] == "hnsw"
            and method["space_type"] in SPACES[method["engine"]]
            and set(parameters) == {"m", "ef_construction"}
            and 2 <= parameters["m"] <= 100
            and parameters["ef_construction"] > 0
        )
        if not is_right:
            raise Refusal(400, "mapper_parsing_exception", f"[{name}] {values}")


def check_row(source: Mapping[str, Any], mapping: Mapping[str, Any]) -> None:
    for name, value in source.items():
        properties = mapping["properties"].get(name)
        if properties is None:
            reason = f"mapping set to strict, dynamic introduction of [{name}] is not allowed"
            raise Refusal(400, "strict_dynamic_mapping_exception", reason)
        kind, reason = properties["type"], f"failed to parse field [{name}]"
        if kind == "keyword":
            is_right = value is None or isinstance(value, str)
            if is_right and value is not None and len(value.encode()) > MAX_TERM_BYTES:
                raise Refusal(400, "illegal_argument_exception", f"immense term in [{name}]")
        elif kind == "integer":
            is_right = value is None or (type(value) is int and -(2**31) <= value < 2**31)
        else:
            is_right = isinstance(value, list) and len(value) == properties["dimension"]
            is_right = is_right and bool(np.isfinite(np.asarray(value, np.float32)).all())
        if not is_right:
            raise Refusal(400, "mapper_parsing_exception", reason)


def matches(row: Mapping[str, Any], query: Mapping[str, Any], mapping: Mapping[str, Any]) -> bool:
    ((kind, values),) = query.items()
    if kind == "match_none":
        return False
    if kind == "bool":
        if not set(values) <= {"must", "must_not"}:
            raise Refusal(400, "parsing_exception", f"[bool] {sorted(values)}")
        must = all(matches(row, part, mapping) for part in values.get("must", ()))
        return must and not any(matches(row, part, mapping) for part in values.get("must_not", ()))
    if kind == "exists":
        return row.get(values["field"]) is not None
    ((name, wanted),) = values.items()
    properties = mapping["properties"].get(name)
    if properties is None or properties.get("index") is False:
        return False
    if kind == "term":
        if properties["type"] == "integer" and type(wanted) is not int:
            raise Refusal(400, "query_shard_exception", f"failed to create query: {wanted!r}")
        return row.get(name) == wanted
    if kind == "terms":
        if len(wanted) > MAX_TERMS:
            raise Refusal(400, "illegal_argument_exception", "too many terms")
        return row.get(name) in wanted
    raise Refusal(400, "parsing_exception", f"unknown query [{kind}]")


def nearest(
    rows: Mapping[str, Mapping[str, Any]], query: Mapping[str, Any], mapping: Mapping[str, Any]
) -> list[tuple[float, str]]:
    ((name, values),) = query.items()
    properties = mapping["properties"][name]
    vector_D = np.asarray(values["vector"], np.float32)
    if not set(values) <= {"vector", "k", "filter"} or not 1 <= values["k"] <= MAX_WINDOW:
        raise Refusal(400, "parsing_exception", "[knn] requires k to be in the range (0, 10000]")
    if len(vector_D) != properties["dimension"]:
        raise Refusal(400, "illegal_argument_exception", "Query vector has invalid dimension")
    where = values.get("filter")
    found = []
    for id_, row in rows.items():
        if where is None or matches(row, where, mapping):
            product = float(vector_D @ np.asarray(row[name], np.float32))
            found.append((1 + product if product > 0 else 1 / (1 - product), id_))
    return sorted(found, reverse=True)[: values["k"]]
