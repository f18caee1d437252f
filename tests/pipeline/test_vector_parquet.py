"""Parquet files put together by hand are read by all as if Arrow had written them."""

import datetime
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import vector_parquet
from pipeline.thrift_compact import BINARY, I32, LIST, STRUCT, TRUE, decode, encode, varint
from pipeline.vector_parquet import VectorParquetWriter

DTYPES = ["float16", "float32"]
COMPRESSIONS = [None, "zstd"]


def vector_type(dtype: str, size: int) -> pa.DataType:
    return pa.list_(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False), size)


def table(num_rows: int, size: int, dtype: str, seed: int = 0) -> pa.Table:
    """Vectors of any bits between columns of many kinds, with nulls where they may be."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 256, num_rows * size * np.dtype(dtype).itemsize, np.uint8)
    values = pa.array(bits.view(dtype))
    kind = vector_type(dtype, size)
    vector = pa.FixedSizeListArray.from_arrays(values, type=kind)
    day = datetime.date(2026, 11, 21)
    rows = range(num_rows)
    place = pa.struct([("a", pa.int64()), ("b", pa.float64())])
    columns = {
        "id": pa.array([f"id {row:06d}" for row in rows], pa.string()),
        "labels": pa.array([["x", None, "y"][: row % 4] for row in rows], pa.list_(pa.string())),
        "vector_0": vector,
        "place": pa.array([{"a": row, "b": None} if row % 3 else None for row in rows], place),
        "vector_1": vector,
        "day": pa.array([day if row % 5 else None for row in rows], pa.date32()),
    }
    fields = [
        pa.field(name, column.type, nullable=not name.startswith("vector_"))
        for name, column in columns.items()
    ]
    schema = pa.schema(fields, metadata={"key": "value"})
    return pa.table(list(columns.values()), schema=schema)


def written(groups: list[pa.Table], compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    names = [name for name in groups[0].schema.names if name.startswith("vector")]
    writer = VectorParquetWriter(
        sink, groups[0].schema, names, compression=compression, dictionary_columns=["id"]
    )
    for group in groups:
        writer.write(group)
    writer.close()
    return sink.getvalue()


def same(found: pa.Table, expected: pa.Table) -> bool:
    """Equal, NaN payloads and all."""
    if found.num_rows != expected.num_rows:
        return False
    for name in expected.schema.names:
        if name.startswith("vector"):
            pair = [item[name].combine_chunks().flatten().to_numpy() for item in (found, expected)]
            if pair[0].tobytes() != pair[1].tobytes():
                return False
    others = [name for name in expected.schema.names if not name.startswith("vector")]
    return found.select(others).equals(expected.select(others))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    size=st.sampled_from([1, 2, 7, 8, 9, 64, 100, 129]),
    dtype=st.sampled_from(DTYPES),
    compression=st.sampled_from(COMPRESSIONS),
    page_bytes=st.sampled_from([1, 100, 1 << 20]),
)
@settings(max_examples=60)
def test_any_table_is_read_back(sizes, size, dtype, compression, page_bytes):
    groups = [table(num_rows, size, dtype, seed) for seed, num_rows in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_parquet, "PAGE_BYTES", page_bytes)
        data = written(groups, compression)
    found = pq.read_table(pa.BufferReader(data))
    assert same(found, pa.concat_tables(groups))
    arrow_wrote = io.BytesIO()
    pq.write_table(pa.concat_tables(groups), arrow_wrote)
    expected = pq.read_table(pa.BufferReader(arrow_wrote.getvalue())).schema
    assert found.schema.equals(expected, check_metadata=True)
    assert found.schema.equals(groups[0].schema)
    assert pq.read_metadata(pa.BufferReader(data)).num_row_groups == sum(map(bool, sizes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_schema_and_the_metadata_are_as_arrow_writes_them(dtype, compression):
    expected = table(100, 16, dtype)
    buffer = io.BytesIO()
    pq.write_table(expected, buffer, compression=compression or "none")
    theirs = pq.ParquetFile(pa.BufferReader(buffer.getvalue()))
    ours = pq.ParquetFile(pa.BufferReader(written([expected], compression)))
    assert ours.schema.equals(theirs.schema)
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)
    assert ours.metadata.metadata == theirs.metadata.metadata
    for index in range(theirs.metadata.num_columns):
        mine, other = (item.metadata.row_group(0).column(index) for item in (ours, theirs))
        assert (mine.path_in_schema, mine.physical_type, mine.num_values, mine.compression) == (
            *(other.path_in_schema, other.physical_type, other.num_values, other.compression),
        )
    assert ours.metadata.row_group(0).num_rows == 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [1, 8, 1024])
def test_duckdb_and_polars_read_it(tmp_path: Path, dtype, compression, size):
    import duckdb
    import polars as pl

    random = np.random.default_rng(1)
    vectors_ND = random.standard_normal((1500, size)).astype(dtype)
    kind = vector_type(dtype, size)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), type=kind)
    ids = pa.array([str(row) for row in range(1500)])
    schema = pa.schema([pa.field("id", pa.string()), pa.field("vector", kind, nullable=False)])
    whole = pa.table([ids, vector], schema=schema)
    path = tmp_path / "file.parquet"
    path.write_bytes(written([whole.slice(0, 1000), whole.slice(1000)], compression))
    connection = duckdb.connect()
    rows = connection.execute(
        "select vector from read_parquet($1) order by id::int", [str(path)]
    ).fetchall()
    one = connection.execute(
        "select id from read_parquet($1) where id = '1234'", [str(path)]
    ).fetchall()
    connection.close()
    assert one == [("1234",)]
    np.testing.assert_array_equal(np.array([row[0] for row in rows], dtype), vectors_ND)
    frame = pl.read_parquet(path)
    assert frame.schema["vector"].shape == (size,)
    np.testing.assert_array_equal(np.stack(frame["vector"].to_list()).astype(dtype), vectors_ND)


def test_slices_and_several_chunks_are_written_as_they_are():
    whole = table(50, 8, "float16")
    pieces = pa.concat_tables([whole.slice(3, 20), whole.slice(30, 1), whole.slice(40)])
    assert pieces["vector_0"].num_chunks == 3
    assert same(pq.read_table(pa.BufferReader(written([pieces]))), pieces)


def test_columns_and_row_groups_are_read_alone():
    groups = [table(10, 8, "float32", seed) for seed in range(3)]
    file = pq.ParquetFile(pa.BufferReader(written(groups)))
    assert same(file.read_row_group(1), groups[1])
    assert file.read_row_group(2, ["vector_1"]).num_columns == 1
    found = file.read(["place"])["place"]
    assert found.equals(pa.concat_tables(groups)["place"])
    assert file.metadata.row_group(1).column(0).statistics.min == "id 000000"


@pytest.mark.parametrize("which", ["list", "element"])
def test_a_null_vector_is_refused(which):
    kind = pa.list_(pa.float32(), 2)
    values = [[1.0, 2.0], None] if which == "list" else [[1.0, None]]
    schema = pa.schema([pa.field("vector", kind)])
    with pytest.raises(ValueError, match="vector is null"):
        written([pa.table([pa.array(values, kind)], schema=schema)])


def test_a_file_of_vectors_alone_is_possible():
    only = table(5, 4, "float32").select(["vector_0"])
    assert same(pq.read_table(pa.BufferReader(written([only]))), only)


def test_numbers_of_any_size_survive_thrift():
    for number in (0, 1, -1, 127, 128, -(2**31), 2**31 - 1, 2**62, -(2**62)):
        values = {1: (I32, number), 40: (BINARY, b"x" * 300), 41: (TRUE, False)}
        assert decode(encode(values)) == {1: (5, number), 40: (8, b"x" * 300), 41: (2, False)}
    assert varint(300) == b"\xac\x02"


def test_long_lists_and_nested_structs_survive_thrift():
    inner = {1: (I32, 5)}
    values = {
        2: (LIST, (STRUCT, [inner] * 20)),
        3: (LIST, (TRUE, [True, False])),
        4: (STRUCT, {}),
        5: (7, 1.5),
        6: (3, 7),
    }
    assert decode(encode(values)) == values


def test_what_parquet_does_not_use_is_refused():
    with pytest.raises(ValueError, match="Thrift type 11"):
        decode(b"\x1b\x00")
    with pytest.raises(ValueError, match="Thrift type 11"):
        encode({1: (11, {})})
    with pytest.raises(IndexError):
        decode(b"\x15")


def test_a_footer_of_arrow_survives_unchanged():
    buffer = io.BytesIO()
    pq.write_table(table(10, 4, "float16"), buffer)
    data = buffer.getvalue()
    footer = data[-8 - struct.unpack("<I", data[-8:-4])[0] : -8]
    assert encode(decode(footer)) == footer
