"""Manifests: written, read, refused."""

import json
import pickle
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, CorruptFileError
from pipeline.snapshot.commit import SnapshotStore, manifest_path
from pipeline.snapshot.metadata import (
    MAX_MANIFEST_BYTES,
    DataFile,
    Snapshot,
    schema_from_json,
    schema_to_json,
)
from pipeline.storage import open_storage
from tests.pipeline.snapshots import snapshot, table_schema

SHA = "0123456789abcdef" * 4
FILE = DataFile("data/lang=en/r-1.parquet", 10, 5, 1000, SHA, {"lang": "en"}, "a", "z")
WHERE = "s3://b/_snapshots/00000001.json"


def manifest(**changes: object) -> bytes:
    """A good manifest with some keys replaced; `...` removes a key."""
    values = json.loads(snapshot([FILE]).to_json()) | changes
    return json.dumps({k: v for k, v in values.items() if v is not ...}).encode()


def test_a_snapshot_is_read_back_as_it_was_written():
    first = snapshot(
        [FILE, replace(FILE, path="data/lang=x/r-2.parquet", partition={"lang": None})]
    )
    assert Snapshot.from_json(first.to_json(), WHERE) == first
    assert first.to_json() == Snapshot.from_json(first.to_json(), WHERE).to_json()
    assert pickle.loads(pickle.dumps(first)) == first


@given(
    partition=st.dictionaries(st.text(min_size=1), st.none() | st.text(), max_size=3),
    ids=st.lists(st.text(), min_size=2, max_size=2),
    number=st.integers(0, 2**63),
)
def test_any_data_file_is_read_back_as_it_was_written(partition, ids, number):
    try:
        json.dumps([partition, ids], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    file = DataFile("data/x", number, number, number, SHA, partition, *ids)
    assert DataFile.from_json(json.loads(json.dumps(file.to_json()))) == file


def test_a_manifest_is_readable_and_in_order():
    text = snapshot([FILE]).to_json().decode()
    values = json.loads(text)
    assert list(values)[:4] == ["format_version", "number", "parent", "created_at"]
    assert values["format_version"] == 1
    assert values["schema"]["fields"][0] == {"name": "id", "type": "string", "nullable": False}
    assert text.count("\n") > 20


def test_secrets_do_not_reach_the_manifest():
    made = snapshot(
        config={
            "output": {"path": "s3://key:very-secret@bucket/x", "api_key": "very-secret"},
            "list": ["https://h/?token=very-secret"],
            "max_tokens": 5,
        }
    )
    assert b"very-secret" not in made.to_json()
    assert made.config["max_tokens"] == 5
    assert made.config["output"]["path"] == "s3://***@bucket/x"


def test_a_new_snapshot_says_when_and_with_which_packages_it_was_made():
    made = snapshot()
    assert made.created_at.endswith("Z")
    assert made.lineage["versions"]["pyarrow"] == pa.__version__
    assert made.lineage["source"] == ["s3://bucket/corpus"]


def test_totals_come_from_the_files():
    made = snapshot([FILE, replace(FILE, path="data/lang=en/2")])
    assert made.num_documents == 10
    assert made.size_bytes == 2000


# Manifests of earlier writers lack these.
OPTIONAL_KEYS = {"changes", "rewritten", "moved"}


@pytest.mark.parametrize("key", sorted({*json.loads(snapshot([FILE]).to_json())} - OPTIONAL_KEYS))
def test_a_missing_key_is_named(key):
    with pytest.raises(CorruptFileError, match=f"00000001.json.*{key}"):
        Snapshot.from_json(manifest(**{key: ...}), WHERE)


@pytest.mark.parametrize("key", sorted(json.loads(snapshot([FILE]).to_json())))
def test_a_value_of_another_type_is_named(key):
    for wrong in (1.5, True):
        with pytest.raises(CorruptFileError, match=f"00000001.json.*{key}"):
            Snapshot.from_json(manifest(**{key: wrong}), WHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": -1}, r"files\[0\]: num_rows: a whole number"),
        ({"num_rows": "3"}, r"files\[0\]: num_rows: a whole number"),
        ({"sha256": "xyz"}, r"files\[0\]: sha256: 64 hexadecimal digits"),
        ({"path": "../../etc/passwd"}, r"files\[0\]: path"),
        ({"path": "/etc/passwd"}, r"files\[0\]: path"),
        ({"path": "data/../../x"}, r"files\[0\]: path"),
        ({"path": "elsewhere/x"}, "not under data/"),
        ({"partition": {"lang": 3}}, "neither a string nor null"),
        ({"partition": {"other": "en"}}, r"partition keys \['other'\], expected \['lang'\]"),
    ],
)
def test_a_wrong_file_entry_is_refused(changes, message):
    with pytest.raises(CorruptFileError, match=message):
        Snapshot.from_json(manifest(files=[FILE.to_json() | changes]), WHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "number 0"),
        ({"number": 3, "parent": 1}, "parent must be the number before"),
        ({"number": 2, "parent": None}, "parent must be the number before"),
        ({"files": [FILE.to_json()] * 2}, "listed twice"),
        ({"partition_columns": ["lang", "more"]}, "schema must end with"),
        ({"counts": {"rows": 1.5}}, r"counts\.rows"),
        ({"rejected_files": [1]}, r"rejected_files\[0\]"),
        ({"schema": {"fields": [], "arrow_ipc": "!!"}}, "schema: arrow_ipc is not an Arrow schema"),
        ({"schema": {"fields": [], "arrow_ipc": "AAAA"}}, "schema"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(CorruptFileError, match=message):
        Snapshot.from_json(manifest(**changes), WHERE)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(CorruptFileError, match="00000001.json"):
        Snapshot.from_json(data, WHERE)


def test_a_later_format_version_is_refused_with_advice():
    with pytest.raises(ConfigError, match="format version 2, this program reads version 1"):
        Snapshot.from_json(manifest(format_version=2), WHERE)


def test_keys_that_a_later_writer_adds_are_skipped():
    added = manifest(change_files=["changes/00000001/a.parquet"])
    assert Snapshot.from_json(added, WHERE).number == 1


def test_a_schema_survives_with_its_metadata():
    schema = table_schema(partition_columns=["lang"]).with_metadata({"key": "value"})
    again = schema_from_json(json.loads(json.dumps(schema_to_json(schema))), WHERE)
    assert again.equals(schema, check_metadata=True)


def test_a_schema_whose_two_forms_differ_is_refused():
    values = schema_to_json(table_schema())
    values["fields"][0]["name"] = "other"
    with pytest.raises(CorruptFileError, match="different schemas"):
        schema_from_json(values, WHERE)


def test_a_manifest_of_ten_gigabytes_is_refused_without_being_read(tmp_path):
    store = SnapshotStore(open_storage(str(tmp_path)))
    (tmp_path / "_snapshots").mkdir()
    with (tmp_path / manifest_path(1)).open("wb") as file:
        file.truncate(10 << 30)  # a sparse file
    with pytest.raises(CorruptFileError, match=r"00000001.json: larger than the allowed 134217728"):
        store.latest()


def test_a_manifest_that_would_be_too_large_is_refused_before_it_is_committed(tmp_path):
    store = SnapshotStore(open_storage(str(tmp_path)))
    with pytest.raises(ConfigError, match="nothing was committed"):
        store.commit(replace(snapshot(), config={"note": "x" * MAX_MANIFEST_BYTES}))
    assert store.numbers() == ()


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 100_000, '{"number": ' + "9" * 10_000])
def test_json_that_is_nested_or_counts_without_end_is_refused(text):
    with pytest.raises(CorruptFileError, match="not JSON"):
        Snapshot.from_json(text.encode(), WHERE)
