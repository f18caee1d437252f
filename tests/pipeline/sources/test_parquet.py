"""Parquet files as other programs write them, good and bad."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources.columns import Roles, plain_type
from pipeline.sources.parquet import read_parquet


@pytest.fixture
def write(tmp_path):
    def write(columns, **options):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path, **options)
        return path

    return write


TEXTS = ["a", None, "é", "a"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_text_may_have_any_string_type(read, write, kind):
    plain = pa.array(TEXTS)
    column = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    columns = {"id": column, "text": column, "c": column}
    corpus = read(write(columns), id_column="id", carry_columns=("c",))
    assert corpus.ids == corpus.texts == ["a", "é", "a"]
    expected = corpus.texts if pa.types.is_string(plain_type(kind)) else [b"a", "é".encode(), b"a"]
    assert corpus.documents["c"].to_pylist() == expected
    assert corpus.codes == ["null_id"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([1, -2], pa.int8()), ["1", "-2"]),
        (pa.array([1, 2**64 - 1], pa.uint64()), ["1", "18446744073709551615"]),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"\0" * 16] * 2, pa.binary(16))),
            ["00000000-0000-0000-0000-000000000000"] * 2,
        ),
    ],
)
def test_ids_become_strings(read, write, ids, expected):
    assert read(write({"id": ids, "text": ["a", "b"]}), id_column="id").ids == expected


def test_partition_values_become_strings(read, write):
    columns = {
        "text": ["a", "b"],
        "i": pa.array([1, None]),
        "b": [True, False],
        "d": pa.array([0, 1], pa.date32()),
        "s": pa.array(["x", ""]).dictionary_encode(),
    }
    corpus = read(write(columns), partition_columns=("i", "b", "d", "s"))
    assert corpus.documents.select(["i", "b", "d", "s"]).to_pylist() == [
        {"i": "1", "b": "true", "d": "1970-01-01", "s": "x"},
        {"i": None, "b": "false", "d": "1970-01-02", "s": ""},
    ]


def test_carried_columns_keep_their_types(read, write):
    columns = {
        "text": ["a", "b"],
        "list": [[1, 2], None],
        "struct": [{"x": 1}, {"x": None}],
        "time": pa.array([1, 2], pa.timestamp("us", "UTC")),
        "decimal": pa.array([1, 2]).cast(pa.decimal128(30, 2)),
        "bytes": [b"\xff", None],
        "half": pa.array([1.5, 2], pa.float16()),
    }
    names = tuple(columns)[1:]
    corpus = read(write(columns), carry_columns=names)
    assert corpus.documents.select(names).to_pylist() == pa.table(columns).drop("text").to_pylist()
    assert corpus.documents["list"].type == pa.list_(pa.int64())


def test_bytes_that_are_not_utf8_are_rejected_in_string_columns_too(read, write):
    raw = pa.array([b"a", b"\xff\xfe", b"c", b"\xed\xa0\x80"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    for column in (raw, broken):
        corpus = read(write({"text": column}))
        assert corpus.texts == ["a", "c"]
        assert corpus.codes == ["not_utf8"] * 2
        assert [row.offset for row in corpus.rejected] == [1, 3]
    corpus = read(write({"text": ["t"] * 4, "c": broken}), carry_columns=("c",))
    assert corpus.codes == ["not_utf8"] * 2


def test_row_numbers_count_through_the_file_whatever_the_splits(read, write):
    path = write({"text": [f"t{n}" for n in range(100)]}, row_group_size=9)
    for split_bytes in (1, 300, 1 << 20):
        corpus = read(path, split_bytes=split_bytes)
        assert corpus.documents["_offset"].to_pylist() == list(range(100))


def test_only_the_needed_columns_are_read(write, read):
    path = write({"text": ["a"], "wide": ["x" * 10_000], "text.more": ["b"]})
    corpus = read(path)
    assert corpus.documents.num_rows == 1
    roles = Roles(id=None, text=("text",), partition=(), carried=())
    (rows,) = read_parquet(corpus.discovery.splits[0], roles)
    assert rows.table.column_names == ["text"]


def test_a_row_group_of_large_rows_comes_in_small_batches(read, write):
    path = write({"text": ["x" * (1 << 20)] * 40}, use_dictionary=False)
    corpus = read(path)
    assert max(corpus.batch_rows) <= 16
    assert sum(corpus.batch_rows) == 40


def test_a_damaged_page_is_an_error_or_rejects_its_split_alone(read, write):
    path = write(
        {"text": [f"text {n}" * 20 for n in range(4_000)]},
        row_group_size=1_000,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    place = pq.read_metadata(path).row_group(2).column(0).data_page_offset + 200
    data[place : place + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet: not a readable Parquet file"):
        read(path)
    corpus = read(path, on_bad_file="reject", split_bytes=1)
    assert corpus.codes == ["corrupt_file"]
    offsets = corpus.documents["_offset"].to_pylist()
    assert offsets == [*range(2_000), *range(3_000, 4_000)]
