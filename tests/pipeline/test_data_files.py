"""Data files: what is in them, how they are named, and that they appear whole or not at all."""

import gc
import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import OutputConfig
from pipeline.data_files import (
    DataFileWriter,
    document_starts,
    read_batches,
    read_schema,
    rewrite_without,
    verified_file,
)
from pipeline.errors import ConfigError, CorruptFileError, MissingFileError
from pipeline.partitions import (
    MAX_DIRECTORY_BYTES,
    NULL_PARTITION,
    parse_partition,
    partition_path,
    partition_problem,
)
from pipeline.snapshot.metadata import DataFile
from pipeline.storage import Storage, open_storage
from tests.pipeline.snapshots import DIM, rows, table_schema, write_file

STORES = ["local", "memory", "moto", pytest.param("rgw", marks=pytest.mark.s3)]
FORMATS = list(itertools.product(["parquet", "arrow"], [None, "zstd"]))
ODD_VALUES = [
    "a/b",
    "..",
    ".",
    "",
    "x=y",
    "%2F",
    "ä中🙂",
    " a b ",
    "a+b&c#d?e*",
    "\n",
    "007",
    "null",
]


@pytest.fixture(params=STORES)
def storage(request: pytest.FixtureRequest) -> Storage:
    return open_storage(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def local(local_url: str) -> Storage:
    return open_storage(local_url)


def config(format_: str = "parquet", compression: str | None = None) -> OutputConfig:
    return OutputConfig.model_validate(
        {"path": "unused", "format": format_, "compression": compression}
    )


def content(storage: Storage, file: DataFile) -> pa.Table:
    with verified_file(storage, file) as source:
        batches = list(read_batches(source, file.path))
        return pa.Table.from_batches(batches, read_schema(source, file.path))


@pytest.mark.parametrize(("format_", "compression"), FORMATS)
def test_what_is_written_is_read_back_on_every_store(storage, format_, compression):
    first, second = rows(["a", "b", "c"]), rows(["d"])
    with DataFileWriter(storage, first.schema, config(format_, compression), {}, "run-1") as writer:
        writer.write(first)
        writer.write(first.slice(0, 0))
        writer.write(second)
        assert not storage.list_files()
        file = writer.close()
    assert content(storage, file) == pa.Table.from_batches([first, second])
    assert [info.path for info in storage.list_files()] == [file.path]
    data = storage.read_bytes(file.path, 1 << 20)
    assert file.size_bytes == len(data)
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert file.path.startswith("data/run-1-")
    assert file.path.endswith(f".{format_}")
    assert (file.num_rows, file.num_documents, file.min_id, file.max_id) == (4, 4, "a", "d")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("format_", "compression"), FORMATS)
def test_plain_readers_see_a_fixed_size_list(local, format_, compression, dtype):
    file = write_file(local, ["a", "b"], output=config(format_, compression), dtype=dtype)
    kind = "ipc" if format_ == "arrow" else format_
    table = pads.dataset(local.url_of(file.path), format=kind).to_table()
    assert table.schema.equals(table_schema(dtype))
    vectors_ND = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    expected_ND = rows(["a", "b"], dtype=dtype).column("vector").flatten().to_numpy()
    assert vectors_ND.tobytes() == expected_ND.tobytes()


def test_vectors_are_stored_without_dictionary_and_statistics(local):
    file = write_file(local, ["a", "b"])
    column = pq.read_metadata(local.url_of(file.path)).row_group(0).column(3)
    assert column.path_in_schema == "vector.list.element"
    assert column.statistics is None
    assert set(column.encodings) <= {"PLAIN", "RLE"}
    assert column.compression == "UNCOMPRESSED"
    assert pq.read_metadata(local.url_of(file.path)).row_group(0).column(0).statistics.max == "b"


def test_compressed_floats_are_split_by_byte_and_halffloats_are_not(local):
    for dtype, encoding in (("float32", "BYTE_STREAM_SPLIT"), ("float16", "PLAIN")):
        file = write_file(local, ["a", "b"], output=config(compression="zstd"), dtype=dtype)
        column = pq.read_metadata(local.url_of(file.path)).row_group(0).column(3)
        assert encoding in column.encodings
        assert column.compression == "ZSTD"


def test_small_batches_are_gathered_into_few_row_groups(local):
    schema = table_schema()
    many = rows([f"{index:04d}" for index in range(500)])
    for format_ in ("parquet", "arrow"):
        with DataFileWriter(local, schema, config(format_), {}, "run-1") as writer:
            for index in range(500):
                writer.write(many.slice(index, 1))
            file = writer.close()
        with verified_file(local, file) as source:
            assert len(list(read_batches(source, file.path))) == 1
        assert content(local, file) == pa.Table.from_batches([many])


def test_a_large_file_has_several_row_groups_and_reports_its_size_as_it_grows(local):
    schema = pa.schema(
        [pa.field("id", pa.string(), nullable=False), pa.field("pad", pa.list_(pa.float32(), 4096))]
    )
    values = pa.array(np.zeros(1024 * 4096, np.float32))
    pad = pa.FixedSizeListArray.from_arrays(values, 4096)
    sizes = []
    with DataFileWriter(local, schema, config(), {}, "run-1") as writer:
        for index in range(5):
            ids = pa.array([f"{index}-{row:04d}" for row in range(1024)])
            writer.write(pa.record_batch([ids, pad], schema=schema))
            sizes.append(writer.size_bytes)
        file = writer.close()
    assert sizes == sorted(sizes)
    assert sizes[-1] == pytest.approx(file.size_bytes, rel=0.01)
    assert pq.read_metadata(local.url_of(file.path)).num_row_groups == 3
    assert file.num_documents == 5120


def test_documents_are_counted_where_the_id_changes_also_across_batches(local):
    with DataFileWriter(local, table_schema(), config(), {}, "run-1") as writer:
        writer.write(rows(["b", "b", "a"]))
        writer.write(rows(["a", "a"]))
        writer.write(rows(["c", "ä"]))
        file = writer.close()
    assert (file.num_rows, file.num_documents) == (7, 4)
    assert (file.min_id, file.max_id) == ("a", "ä")


@given(ids=st.lists(st.sampled_from("abc"), max_size=20), cut=st.integers(0, 20))
def test_document_starts_do_not_depend_on_how_rows_are_cut(ids, cut):
    expected = [key for key, _ in itertools.groupby(ids)]
    first, second = ids[:cut], ids[cut:]
    starts = document_starts(pa.array(first, pa.string()), None).to_pylist()
    previous = first[-1] if first else None
    starts += document_starts(pa.array(second, pa.string()), previous).to_pylist()
    assert starts == expected


def test_an_aborted_writer_leaves_nothing(storage):
    for format_ in ("parquet", "arrow"):
        writer = DataFileWriter(storage, table_schema(), config(format_), {}, "run-1")
        writer.write(rows(["a"]))
        writer.abort()
        writer.abort()
        forgotten = DataFileWriter(storage, table_schema(), config(format_), {}, "run-1")
        forgotten.write(rows(["a"]))
        del forgotten
    gc.collect()
    assert storage.list_files() == []


def test_a_schema_that_the_format_cannot_hold_leaves_nothing(local):
    schema = table_schema().append(pa.field("span", pa.month_day_nano_interval()))
    with pytest.raises(pa.ArrowNotImplementedError):
        DataFileWriter(local, schema, config(), {}, "run-1")
    gc.collect()
    assert list(Path(local.url).rglob("*.*")) == []


def fail_in_the_middle(storage: Storage) -> None:
    with DataFileWriter(storage, table_schema(), config(), {}, "run-1") as writer:
        writer.write(rows(["a"]))
        raise ZeroDivisionError


def test_a_writer_in_a_with_block_aborts_when_the_block_fails(storage):
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle(storage)
    assert storage.list_files() == []


def test_a_batch_of_another_schema_is_refused(local):
    with (
        DataFileWriter(local, table_schema("float32"), config(), {}, "run-1") as writer,
        pytest.raises(ValueError, match="expected the columns"),
    ):
        writer.write(rows(["a"], dtype="float16"))


def test_names_of_files_never_repeat(local):
    paths = {write_file(local, ["a"], partition={"k": "v"}).path for _ in range(5)}
    assert len(paths) == 5
    assert all(path.startswith("data/k=v/run-1-") for path in paths)


@pytest.mark.parametrize("value", [*ODD_VALUES, None])
def test_any_partition_value_comes_back_from_every_reader(local, value):
    import duckdb
    import polars as pl

    file = write_file(local, ["a"], partition={"first": "x", "k": value})
    path = local.url_of(file.path)
    assert ".." not in file.path.split("/")
    assert parse_partition(file.path) == {"first": "x", "k": value}
    keys = pa.schema([("first", pa.string()), ("k", pa.string())])
    partitioning = pads.partitioning(keys, flavor="hive")
    arrow = pads.dataset([path], partitioning=partitioning).to_table()
    assert arrow["k"].to_pylist() == [value]
    connection = duckdb.connect()
    found = connection.execute(
        "select k from read_parquet([?], hive_partitioning=true, hive_types_autocast=false)",
        [path],
    ).fetchall()
    connection.close()
    assert found == [(value,)]
    polars = pl.scan_parquet(
        [path], hive_partitioning=True, hive_schema={"first": pl.String, "k": pl.String}
    )
    assert polars.collect()["k"].to_list() == [value]


def test_an_odd_partition_key_is_encoded_like_a_value(local):
    file = write_file(local, ["a"], partition={"k ä=/": "v"})
    assert file.path.startswith("data/k%20%C3%A4%3D%2F=v/run-1-")
    assert parse_partition(file.path) == {"k ä=/": "v"}
    partitioning = pads.partitioning(pa.schema([("k ä=/", pa.string())]), flavor="hive")
    dataset = pads.dataset([local.url_of(file.path)], partitioning=partitioning)
    assert dataset.to_table()["k ä=/"].to_pylist() == ["v"]


@pytest.mark.parametrize("value", ODD_VALUES)
def test_odd_partition_values_work_on_s3_too(moto_url, value):
    storage = open_storage(moto_url)
    file = write_file(storage, ["a"], partition={"k": value})
    assert content(storage, file)["id"].to_pylist() == ["a"]
    partitioning = pads.partitioning(pa.schema([("k", pa.string())]), flavor="hive")
    filesystem = storage.as_arrow_filesystem()
    dataset = pads.dataset([file.path], filesystem=filesystem, partitioning=partitioning)
    assert dataset.to_table(columns=["k"])["k"].to_pylist() == [value]


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.none() | st.text(max_size=20)))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_partition_paths_are_safe_and_reversible(partition):
    if any(partition_problem(key, value) for key, value in partition.items()):
        return
    path = partition_path(partition)
    assert path.isascii()
    assert parse_partition(f"{path}/file") == partition
    for segment in path.split("/") if path else []:
        assert segment not in ("", ".", "..")
        assert len(segment) <= MAX_DIRECTORY_BYTES


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (NULL_PARTITION, "stands for null"),
        ("x" * 300, "takes 302 bytes"),
        ("中" * 29, "takes 263 bytes"),
        ("\ud800", "lone surrogates"),
    ],
)
def test_a_value_that_cannot_be_a_directory_is_refused(local, value, message):
    with pytest.raises(ConfigError, match=message):
        write_file(local, ["a"], partition={"k": value})
    assert local.list_files() == []


@pytest.mark.parametrize(("format_", "compression"), FORMATS)
def test_documents_are_dropped_by_copying(storage, format_, compression):
    output = config(format_, compression)
    partition = {"lang": "a/b"}
    old = write_file(storage, [f"{index:03d}" for index in range(100)], partition=partition)
    dropped = [f"{index:03d}" for index in range(0, 100, 3)]
    new = rewrite_without(storage, old, dropped, output, "run-2")
    assert new is not None
    expected = content(storage, old).filter(pa.array([i % 3 != 0 for i in range(100)]))
    assert content(storage, new) == expected
    assert new.path.startswith("data/lang=a%2Fb/run-2-")
    assert (new.num_rows, new.num_documents) == (66, 66)
    assert (new.min_id, new.max_id, dict(new.partition)) == ("001", "098", partition)
    assert storage.exists(old.path)


def test_dropping_all_leaves_nothing_and_dropping_none_keeps_the_file(local):
    old = write_file(local, ["a", "b", "c"])
    assert rewrite_without(local, old, {"a", "b", "c", "x"}, config(), "run-2") is None
    assert rewrite_without(local, old, ["x"], config(), "run-2") is old
    assert rewrite_without(local, old, pa.array([], pa.string()), config(), "run-2") is old
    assert [info.path for info in local.list_files()] == [old.path]


def test_all_rows_of_a_dropped_document_go(local):
    with DataFileWriter(local, table_schema(), config(), {}, "run-1") as writer:
        writer.write(rows(["a", "a", "b", "b", "b", "c"]))
        old = writer.close()
    new = rewrite_without(local, old, pa.array(["b"]), config(), "run-2")
    assert new is not None
    assert content(local, new)["id"].to_pylist() == ["a", "a", "c"]
    assert new.num_documents == 2


def test_a_damaged_file_is_not_copied(local):
    old = write_file(local, ["a", "b"])
    data = bytearray(local.read_bytes(old.path, 1 << 20))
    data[50] ^= 1
    local.put(old.path, bytes(data))
    with pytest.raises(CorruptFileError, match="SHA-256"):
        rewrite_without(local, old, ["a"], config(), "run-2")
    local.put(old.path, bytes(data[:-1]))
    with pytest.raises(CorruptFileError, match=f"promises {len(data)} bytes"):
        rewrite_without(local, old, ["a"], config(), "run-2")
    local.delete(old.path)
    with pytest.raises(MissingFileError):
        rewrite_without(local, old, ["a"], config(), "run-2")
    assert local.list_files() == []


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_bytes_that_are_no_data_file_are_named(local, format_):
    junk = os.urandom(100)
    file = DataFile(f"data/x.{format_}", 1, 1, 100, hashlib.sha256(junk).hexdigest())
    local.put(file.path, junk)
    with verified_file(local, file) as source:
        with pytest.raises(CorruptFileError, match=f"x.{format_}: cannot be decoded"):
            read_schema(source, file.path)
        with pytest.raises(CorruptFileError, match=f"x.{format_}: cannot be decoded"):
            list(read_batches(source, file.path, ["id"]))


def test_columns_are_read_alone(local):
    for format_ in ("parquet", "arrow"):
        file = write_file(local, ["a", "b"], output=config(format_))
        with verified_file(local, file) as source:
            (batch,) = read_batches(source, file.path, ["id", "content_hash"])
        assert batch.schema.names == ["id", "content_hash"]
