"""Partition values, ids and the paths in manifests cannot leave the snapshot directory."""

from __future__ import annotations

import json
import os
import uuid

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.config import OutputConfig
from pipeline.data_files import DataFileWriter
from pipeline.errors import ConfigError, CorruptFileError
from pipeline.partitions import (
    MAX_DIRECTORY_BYTES,
    NULL_PARTITION,
    parse_partition,
    partition_path,
    partition_problem,
)
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.read import open_snapshot
from pipeline.snapshot.run_record import RunRecord
from pipeline.storage import open_storage
from tests.pipeline.snapshots import rows, snapshot, table_schema, write_file

HOSTILE = (
    "..", ".", "", "/", "../../etc/passwd", "/etc/passwd", "a/../../b", "..\\..\\x", "C:\\x",
    "%2e%2e%2f", "%252e%252e%252f", "%00", "a\0b", "a\nb", "a\r\nb", "\x7f", "\u2024\u2024/",
    "\uff0e\uff0e\uff0f", "\u2215etc", "a=b", "a&b", "*", "?", "[a]", "~", "~root", "$HOME", "`id`",
    "-rf", " ", "  leading", "trailing ", ".hidden", "_SUCCESS", "CON", "a" * 250, "\U0001f600",
    "\u202egpj.exe", "e\u0301", "\u00e9", "null", "NULL", "#", "s3://other/x", "__HIVE__",
)  # fmt: skip


def check_path_of(values):
    """The directory of some values has a level a key, no dots, and reads back equal."""
    path = partition_path(values)
    segments = path.split("/") if path else []
    assert len(segments) == len(values)
    for segment in segments:
        assert segment not in ("", ".", "..")
        assert segment.isascii()
        assert segment.isprintable()
        assert len(segment) <= MAX_DIRECTORY_BYTES
        assert not set(segment) & set('\\:*?"<>| ')
    assert parse_partition(f"{path}/file") == values


@given(st.dictionaries(st.text(min_size=1), st.none() | st.text(), max_size=3))
@example({"lang": "a" * 300})
@example({"lang": "\ud800"})
@example({"lang": NULL_PARTITION})
def test_any_value_reads_back_equal_or_is_refused_with_its_reason(values):
    problems = [partition_problem(key, value) for key, value in values.items()]
    if any(problems):
        with pytest.raises(ConfigError, match="partition column"):
            partition_path(values)
    else:
        check_path_of(values)


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_values_made_to_escape_are_names_like_others(value):
    assert partition_problem("lang", value) is None
    check_path_of({"lang": value})
    if len(value) < 200:
        check_path_of({"lang": value, f"{value}key": value})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a" * 251, "takes 256 bytes as a directory name"),
        ("\u4e2d" * 100, "takes 905 bytes as a directory name"),
        ("\ud800", "lone surrogates"),
        (NULL_PARTITION, "stands for null"),
    ],
)
def test_what_cannot_be_a_partition_says_why(value, reason):
    assert reason in partition_problem("lang", value)


def write_all(url):
    """A snapshot whose documents have hostile ids, in a partition for each hostile value."""
    storage = open_storage(url)
    schema = table_schema()
    files = []
    for value in HOSTILE:
        output = OutputConfig(path=url)
        writer = DataFileWriter(storage, schema, output, {"lang": value}, "run-1")
        writer.write(rows([f"{value}/../../../{uuid.uuid4().hex}"]))
        files.append(writer.close())
    SnapshotStore(storage).commit(snapshot(files))
    return storage, files


@pytest.mark.parametrize("store", ["local_url", "moto_url", "rgw_url"])
def test_all_that_is_written_lies_below_the_root_and_reads_back_equal(store, request):
    url = request.getfixturevalue(store)
    parent = open_storage(url.rpartition("/")[0])
    before = {info.path for info in parent.list_files()}
    storage, files = write_all(url)
    name = url.rpartition("/")[2]
    new = {info.path for info in parent.list_files()} - before
    assert new
    assert all(path.startswith((f"{name}/data/", f"{name}/_snapshots/")) for path in new)
    assert {file.path for file in files} == {info.path for info in storage.list_files("data")}
    _, dataset = open_snapshot(url)
    table = dataset.to_table(columns=["id", "lang"])
    found = dict(zip(table["lang"].to_pylist(), table["id"].to_pylist(), strict=True))
    assert set(found) == set(HOSTILE)
    assert all(id_.startswith(f"{value}/../") for value, id_ in found.items())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(path=st.text(st.sampled_from("./a\\%~\0\n\u2024"), max_size=12))
@example(path="../x")
@example(path="data/../../x")
@example(path="/etc/passwd")
def test_no_path_leads_out_of_a_storage(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    storage = open_storage(str(root))
    try:
        full = storage.url_of(path)
    except ConfigError:
        return
    assert os.path.realpath(full) == full.rstrip("/")
    assert os.path.commonpath([full, root]) == str(root)


ESCAPES = (
    *("../x", "data/../../x", "/etc/passwd", "data//x", "data/./x", "data/a\nb", "data/a\0b"),
    *("", "s3://other/x", "elsewhere/x", "data/" + "a/" * 600 + "x"),
)


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("key", ["files", "rejected_files", "changes", "moved", "rewritten"])
def test_a_manifest_that_names_what_is_not_in_its_place_is_refused(tmp_path, key, path):
    storage = open_storage(str(tmp_path / "store"))
    file = write_file(storage, ["a"])
    values = json.loads(snapshot([file]).to_json())
    if key == "files":
        values["files"][0]["path"] = path
    elif key == "rewritten":
        values["rewritten"] = {"data/old.parquet": path}
    else:
        values[key] = [path]
    storage.put_if_absent(manifest_path(1), json.dumps(values).encode())
    with pytest.raises(CorruptFileError, match=key):
        open_snapshot(storage.url)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/a", "a\0", "a\nb", "-a", ".a", "a" * 101])
def test_run_ids_and_tags_are_plain_names(tmp_path, name):
    from pipeline.snapshot.tags import check_name

    storage = open_storage(str(tmp_path / "store"))
    with pytest.raises(ConfigError):
        RunRecord(storage, name)
    with pytest.raises(ConfigError):
        check_name(name)


def test_a_snapshot_is_refused_before_it_is_committed_with_such_a_path(tmp_path):
    storage = open_storage(str(tmp_path / "store"))
    with pytest.raises(CorruptFileError, match="rejected_files"):
        SnapshotStore(storage).commit(snapshot(rejected_files=["../x"]))
    assert storage.list_files() == []
    with pytest.raises(CorruptFileError, match="rewritten"):
        Snapshot.from_json(snapshot(rewritten={"../x": "data/y"}).to_json(), manifest_path(1))
