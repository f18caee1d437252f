"""docs/FORMAT.md: its example is a manifest, its keys are ours, its snippets run."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.partitions import MAX_DIRECTORY_BYTES, NULL_PARTITION
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.metadata import FORMAT_VERSION, MAX_MANIFEST_BYTES, DataFile, Snapshot
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot, write_file

DOCUMENT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_the_example_is_a_manifest():
    (example,) = blocks("json")
    read = Snapshot.from_json(example.encode(), "docs/FORMAT.md")
    assert json.loads(read.to_json()) == json.loads(example)
    assert read.schema.field("vector").type.list_size == 1024


@pytest.mark.parametrize("part", [Snapshot, DataFile])
def test_every_key_is_described(part):
    for field in dataclasses.fields(part):
        assert re.search(rf"^\| .*`{field.name}`", DOCUMENT, re.MULTILINE), field.name


def test_its_numbers_are_ours():
    assert f"format version {FORMAT_VERSION}" in DOCUMENT
    assert f"at most {MAX_MANIFEST_BYTES >> 20} MiB" in DOCUMENT
    assert f"longer than {MAX_DIRECTORY_BYTES} bytes" in DOCUMENT
    assert NULL_PARTITION in DOCUMENT
    assert manifest_path(1) in DOCUMENT


def test_its_snippets_run(tmp_path, monkeypatch, ray_cluster):
    storage = open_storage(str(tmp_path / "vectors"))
    files = [
        write_file(storage, ["a", "b"], partition={"lang": "en"}),
        write_file(storage, ["c"], partition={"lang": None}),
    ]
    SnapshotStore(storage).commit(snapshot(files))
    write_file(storage, ["orphan"], partition={"lang": "en"})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["table"]["id"].to_pylist() == ["a", "b"]
    assert names["matrix"].shape == (2, 8)
    assert [row[:2] for row in names["rows"]] == [("a", "en"), ("b", "en"), ("c", None)]
    assert names["english"]["id"].to_list() == ["a", "b"]
    assert names["vectors"].count() == 3
    assert sorted(names["ids"]["id"].to_pylist()) == ["a", "b", "c"]
