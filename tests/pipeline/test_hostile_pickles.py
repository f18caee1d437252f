"""Nothing is unpickled: not from a corpus, not from a snapshot, whoever registered which type."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig, TextConfig
from pipeline.data_files import read_batches, read_schema, verified_file
from pipeline.errors import ConfigError, CorruptFileError, SourceError
from pipeline.extension_types import LET_PASS_TYPES, UNPICKLING_VARIABLE
from pipeline.known import read_known
from pipeline.snapshot.commit import SnapshotStore
from pipeline.snapshot.metadata import Snapshot
from pipeline.snapshot.read import open_snapshot
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage
from pipeline.verify import verify_snapshot
from tests.pipeline.snapshots import rows, snapshot, write_file

PICKLED = "ray.data.arrow_pickled_object"


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.fixture
def witness(tmp_path):
    """A payload; the test fails if it has run."""
    path = tmp_path / "unpickled"
    yield pickle.dumps(Payload(path))
    assert not path.exists()


@pytest.fixture(autouse=True)
def _ray_knows_its_types():
    """As in every worker: Ray's extension types are registered."""
    for name in ("object_extensions", "tensor_extensions"):
        importlib.import_module(f"ray.data._internal.{name}.arrow")


def named(name, extra=b""):
    return {"ARROW:extension:name": name, "ARROW:extension:metadata": extra}


def hostile_column(where, payload, name=PICKLED):
    """A field and its column of two values, the payload somewhere in it."""
    values = pa.array([payload, payload], pa.large_binary())
    item = pa.field("item", pa.large_binary(), metadata=named(name))
    if where == "list":
        kind = pa.list_(item)
        offsets = pa.array([0, 1, 2], pa.int32())
        return pa.field("x", kind), pa.ListArray.from_arrays(offsets, values, type=kind)
    if where == "struct":
        column = pa.StructArray.from_arrays([values], fields=[item])
        return pa.field("x", column.type), column
    if where == "metadata":
        kind = pa.list_(pa.int64())
        field = pa.field("x", kind, metadata=named("ray.data.arrow_tensor", payload))
        return field, pa.array([[1], [2]], kind)
    return item.with_name("x"), values


def write(path, fields, columns):
    """Write raw metadata, as an attacker's program does that registers nothing."""
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def read_all(path, **config):
    source = SourceConfig(path=str(path), **config)
    for split in discover(source).splits:
        for batch in read_documents(split, source, TextConfig()):
            batch.documents.to_pylist()


def test_the_payload_does_run_where_nobody_refuses_it(tmp_path):
    """What the other tests are about is real."""
    ran = tmp_path / "ran"
    field, column = hostile_column("top", pickle.dumps(Payload(ran)))
    write(tmp_path / "a.parquet", [field], [column])
    with contextlib.suppress(FileExistsError):  # the second value runs it again
        pq.read_table(tmp_path / "a.parquet")["x"].to_pylist()
    assert ran.is_dir()


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("where", ["top", "list", "struct", "metadata"])
@pytest.mark.parametrize("is_carried", [True, False])
def test_a_pickle_in_any_column_of_the_corpus_is_refused(
    tmp_path, witness, ending, where, is_carried
):
    field, column = hostile_column(where, witness)
    path = tmp_path / f"a.{ending}"
    write(path, [pa.field("text", pa.string()), field], [pa.array(["a", "b"]), column])
    with pytest.raises(SourceError, match=str(path)) as caught:
        read_all(path, carry_columns=("x",) if is_carried else ())
    assert UNPICKLING_VARIABLE not in str(caught.value), "that would be bad advice"


@pytest.mark.parametrize("role", ["id_column", "text_columns", "partition_columns"])
def test_a_pickle_in_the_place_of_id_text_or_partition_is_refused(tmp_path, witness, role):
    field, column = hostile_column("top", witness)
    write(
        tmp_path / "a.parquet",
        [pa.field("text", pa.string()), field],
        [pa.array(["a", "b"]), column],
    )
    config = {role: "x" if role == "id_column" else ("x",)}
    with pytest.raises(SourceError, match=PICKLED):
        read_all(tmp_path / "a.parquet", **config)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_where_ray_may_unpickle_metadata_no_schema_is_read(tmp_path, witness, ending, monkeypatch):
    monkeypatch.setenv(UNPICKLING_VARIABLE, "1")
    field, column = hostile_column("metadata", witness)
    path = tmp_path / f"a.{ending}"
    write(path, [pa.field("text", pa.string()), field], [pa.array(["a", "b"]), column])
    with pytest.raises(ConfigError, match=UNPICKLING_VARIABLE):
        read_all(path)
    with pytest.raises(ConfigError, match=UNPICKLING_VARIABLE):
        snapshot_with_schema(pa.schema([field]))


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "somebody.elses_type"])
def test_types_that_nobody_knows_are_refused(tmp_path, witness, name):
    field, column = hostile_column("top", witness, name)
    write(
        tmp_path / "a.parquet",
        [pa.field("text", pa.string()), field],
        [pa.array(["a", "b"]), column],
    )
    with pytest.raises(SourceError, match=name):
        read_all(tmp_path / "a.parquet")


def test_types_of_the_list_pass_in_columns_that_are_not_read(tmp_path):
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ones((2, 3)))
    assert tensor.type.extension_name in LET_PASS_TYPES
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), pa.schema([("text", pa.string()), ("x", tensor.type)])) as file:
        file.write_table(pa.table({"text": ["a", "b"], "x": tensor}))
    read_all(path)
    with pytest.raises(SourceError, match="is not read"):
        read_all(path, carry_columns=("x",))


def snapshot_with_schema(schema):
    """A manifest that names this schema, read."""
    values = json.loads(snapshot().to_json())
    values["schema"] = {
        "fields": [{"name": item.name, "type": "string", "nullable": True} for item in schema],
        "arrow_ipc": base64.b64encode(schema.serialize()).decode(),
    }
    return Snapshot.from_json(json.dumps(values).encode(), "_snapshots/00000001.json")


@pytest.mark.parametrize("where", ["top", "list", "struct", "metadata"])
def test_a_manifest_with_an_extension_type_is_refused(witness, where):
    field, _ = hostile_column(where, witness)
    with pytest.raises(CorruptFileError, match="00000001.json: schema"):
        snapshot_with_schema(pa.schema([field]))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("column", ["id", "title"])
def test_a_hostile_data_file_in_a_snapshot_is_found_and_never_run(
    tmp_path, witness, ending, column
):
    """Size and hash are right: the attacker can write manifests, too."""
    storage = open_storage(str(tmp_path / "store"))
    good = write_file(storage, ["a", "b"])
    batch = rows(["a", "b"])
    place = batch.schema.get_field_index(column)
    fields, columns = list(batch.schema), list(batch.columns)
    fields[place] = pa.field(column, pa.large_binary(), metadata=named(PICKLED))
    columns[place] = pa.array([witness, witness], pa.large_binary())
    path = tmp_path / f"x.{ending}"
    write(path, fields, columns)
    data = path.read_bytes()
    file = replace(
        good,
        path=f"data/r-1.{ending}",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    storage.put_if_absent(file.path, data)
    SnapshotStore(storage).commit(snapshot([file]))

    made, dataset = open_snapshot(storage.url)
    # No cast from the storage type: an error is as good as bytes.
    with contextlib.suppress(pa.ArrowException):
        dataset.to_table().to_pylist()
    with verified_file(storage, file) as source:
        with pytest.raises(CorruptFileError, match=PICKLED):
            read_schema(source, file.path)
        with pytest.raises(CorruptFileError, match=PICKLED):
            list(read_batches(source, file.path))
    report = verify_snapshot(storage, made)
    assert [problem.code for problem in report.problems][0] == "corrupt"
    try:
        read_known(storage, file.path).to_pylist()
    except CorruptFileError:
        assert column == "id"
