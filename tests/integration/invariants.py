"""What must hold after every night, whatever went wrong in it. Reads snapshots with plain pyarrow.

Nothing of the pipeline reads here but its own verification, so a reader that is wrong in the same
way as its writer is found out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.snapshot.commit import SnapshotStore
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from tests.integration.history import Documents, Row, difference, expected_rows

Manifest = dict[str, Any]


class ViolationError(AssertionError):
    """Something that must never happen has happened."""


def read_manifest(url: str, number: int | None = None) -> Manifest:
    """One manifest, the latest by default; an empty one if there is none yet."""
    filesystem, root = pafs.FileSystem.from_uri(url)
    numbers = snapshot_numbers(url)
    if not numbers:
        return {"number": 0, "files": [], "counts": {}}
    number = number or numbers[-1]
    data = _read(filesystem, f"{root}/_snapshots/{number:08d}.json")
    manifest: Manifest = json.loads(data)
    return manifest


def snapshot_numbers(url: str) -> list[int]:
    """Numbers of all snapshots that are there."""
    filesystem, root = pafs.FileSystem.from_uri(url)
    selector = pafs.FileSelector(f"{root}/_snapshots", allow_not_found=True)
    infos = filesystem.get_file_info(selector)
    return sorted(int(info.base_name[:-5]) for info in infos if info.base_name.endswith(".json"))


def read_table(url: str, manifest: Manifest) -> pa.Table:
    """All rows of a snapshot, as any reader of Parquet and Arrow finds them."""
    filesystem, root = pafs.FileSystem.from_uri(url)
    keys = pa.schema([(name, pa.string()) for name in manifest["partition_columns"]])
    partitioning = pads.partitioning(keys, flavor="hive") if len(keys) else None
    tables = []
    for ending, format_ in ((".parquet", "parquet"), (".arrow", "ipc")):
        paths = [file["path"] for file in manifest["files"] if file["path"].endswith(ending)]
        if paths:
            dataset = pads.dataset(
                [f"{root}/{path}" for path in paths],
                filesystem=filesystem,
                format=format_,
                partitioning=partitioning,
            )
            tables.append(dataset.to_table())
    return pa.concat_tables(tables)


def read_rows(url: str, manifest: Manifest) -> list[Row]:
    """All rows of a snapshot as the oracle describes them, sorted."""
    if not manifest["files"]:
        return []
    table = read_table(url, manifest)
    vectors = table["vector"].combine_chunks()
    matrix = vectors.flatten().to_numpy().reshape(len(vectors), -1)
    columns = []
    for name, default in _ROW_DEFAULTS.items():
        there = name in table.column_names
        columns.append(table[name].to_pylist() if there else [default] * len(table))
    packed = [vector.tobytes() for vector in matrix]
    rows = [Row(*values) for values in zip(*columns, packed, strict=True)]
    return sorted(rows, key=lambda row: row[:3])


_ROW_DEFAULTS = {
    "id": "",
    "sentence_index": -1,
    "token_index": -1,
    "token": None,
    "start": -1,
    "end": -1,
    "text": None,
    "title": None,
    "lang": None,
}


def check_rows(url: str, level: str, documents: Documents, number: int | None = None) -> Manifest:
    """The snapshot holds these documents, row for row and bit for bit; returns its manifest."""
    manifest = read_manifest(url, number)
    found, expected = read_rows(url, manifest), expected_rows(documents, level)
    if found != expected:
        raise ViolationError(f"snapshot {manifest['number']}: {_explain(found, expected)}")
    promised = sum(file["num_documents"] for file in manifest["files"])
    if promised != len(documents):
        raise ViolationError(f"the manifest promises {promised} documents, {len(documents)} are")
    store = SnapshotStore(open_storage(url))
    report = verify_snapshot(store.storage, store.load(manifest["number"]), num_threads=1)
    if not report.is_good:
        raise ViolationError(f"snapshot {manifest['number']}: {report.problems}")
    return manifest


def check_feed(url: str, manifest: Manifest, before: Documents, after: Documents) -> None:
    """The snapshot's own feed says exactly how `before` became `after`, and where vectors lie."""
    number = manifest["number"]
    if manifest.get("changes") is None:
        raise ViolationError(f"snapshot {number} has no change feed")
    filesystem, root = pafs.FileSystem.from_uri(url)
    rows = [
        row
        for path in manifest["changes"]
        for row in pq.read_table(f"{root}/{path}", filesystem=filesystem).to_pylist()
    ]
    found = {row["id"]: row["op"] for row in rows}
    expected = difference(before, after).changes
    if found != expected or len(rows) != len(found):
        raise ViolationError(
            f"snapshot {number}: the feed has {len(rows)} rows; wrong or missing: "
            f"{sorted(set(found.items()) ^ set(expected.items()))[:10]}"
        )
    holders: dict[str, set[str]] = {}
    for row in rows:
        if row["op"] != "delete":
            holders.setdefault(row["file"], set()).add(row["id"])
        elif row["file"] is not None:
            raise ViolationError(f"snapshot {number}: a deleted document has a place: {row}")
    named = {file["path"] for file in manifest["files"]}
    for path, ids in holders.items():
        if path not in named:
            raise ViolationError(f"snapshot {number}: its feed names {path}, its manifest does not")
        one = {**manifest, "files": [{"path": path}]}
        missing = ids - set(read_table(url, one)["id"].to_pylist())
        if missing:
            raise ViolationError(f"snapshot {number}: {path} lacks {sorted(missing)[:5]}")


@dataclass
class Archive:
    """What was committed and must stay as it was: manifests byte for byte, files by their hash."""

    url: str
    manifests: dict[int, bytes] = field(default_factory=dict)

    def check(self, expired: Iterable[int] = ()) -> None:
        """All snapshots seen before, but those expired, are as they were; then remember new ones.

        Every file that any of them names is read and hashed.
        """
        filesystem, root = pafs.FileSystem.from_uri(self.url)
        for number in expired:
            self.manifests.pop(number, None)
        there = {
            number: _read(filesystem, f"{root}/_snapshots/{number:08d}.json")
            for number in snapshot_numbers(self.url)
        }
        for number, data in self.manifests.items():
            if there.get(number) != data:
                raise ViolationError(f"snapshot {number} changed or vanished")
        self.manifests = there
        hashes = {
            file["path"]: file["sha256"]
            for data in there.values()
            for file in json.loads(data)["files"]
        }
        for path, sha256 in hashes.items():
            try:
                found = hashlib.sha256(_read(filesystem, f"{root}/{path}")).hexdigest()
            except FileNotFoundError:
                raise ViolationError(f"{path} is named by a snapshot and gone") from None
            if found != sha256:
                raise ViolationError(f"{path} is not what its manifest says")


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        data: bytes = file.read()
    return data


def _explain(found: list[Row], expected: list[Row]) -> str:
    """The first differences, by document."""
    twice = [row for row, count in Counter(row[:3] for row in found).items() if count > 1]
    if twice:
        return f"{len(twice)} rows are there twice, as {twice[:3]}"
    here, there = {row[:3]: row for row in found}, {row[:3]: row for row in expected}
    missing, surplus = sorted(there.keys() - here.keys()), sorted(here.keys() - there.keys())
    other = [
        (here[key], there[key]) for key in here.keys() & there.keys() if here[key] != there[key]
    ]
    return (
        f"{len(missing)} rows are missing, as {missing[:3]}; {len(surplus)} surplus, as "
        f"{surplus[:3]}; {len(other)} differ, as (found, expected) {other[:1]}"
    )
