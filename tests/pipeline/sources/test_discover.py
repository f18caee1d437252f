"""What is found before any work, and which errors stop a run there."""

import importlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig
from pipeline.errors import ConfigError, SourceError
from pipeline.sources.discover import discover
from pipeline.storage import open_storage


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROW = jsonl({"id": "1", "text": "a"})


def put(url, **contents):
    for path, data in contents.items():
        open_storage(url).put(path, data)


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def error_of(path, **config):
    with pytest.raises(SourceError) as caught:
        discover(SourceConfig(path=str(path), **config))
    return str(caught.value)


@pytest.mark.parametrize("store", ["local_url", "memory_url", "moto_url"])
def test_paths_globs_and_directories_find_the_same_files(store, request, caplog):
    url = request.getfixturevalue(store)
    storage = open_storage(url)
    names = ["a.jsonl", "b/c.jsonl", "b/d.jsonl", "e=1/f.jsonl"]
    for name in [*names, "_SUCCESS", ".hidden.jsonl", "_tmp/x.jsonl", "b/.g/y.jsonl", "notes.md"]:
        storage.put(name, ROW)

    def found(*paths):
        discovery = discover(SourceConfig(path=paths))
        return [file.path.removeprefix(storage.url + "/") for file in discovery.files]

    assert found(url) == found(f"{url}/") == found(f"{url}/**") == names
    assert found(f"{url}/b") == found(f"{url}/b/*.jsonl") == ["b/c.jsonl", "b/d.jsonl"]
    assert found(f"{url}/b/d.jsonl", f"{url}/b", f"{url}/[ab].jsonl") == names[:3]
    assert found(f"{url}/?=*") == found(f"{url}/e*/") == ["e=1/f.jsonl"]
    assert found(f"{url}/*") == names
    assert found(f"{url}/.hidden.jsonl") == [".hidden.jsonl"]
    ignored = discover(SourceConfig(path=url)).ignored
    assert ignored == (storage.url_of("notes.md"),)
    assert "1 of the files found stand for no format" in caplog.text


def test_splits_are_sorted_by_path_and_place(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(ROW * 40)
    splits = discover(SourceConfig(path=str(tmp_path), split_bytes=300)).splits
    assert [(s.path, s.start) for s in splits] == sorted((s.path, s.start) for s in splits)
    assert [s.index for s in splits] == list(range(len(splits)))
    assert sum(s.size_bytes for s in splits) == 3 * 40 * len(ROW)


def test_hive_keys_of_the_path_are_decoded_and_win_over_columns(read, tmp_path):
    folder = tmp_path / "lang=pt%2FBR" / "year=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl({"text": "a", "lang": "no", "n": 1}))
    corpus = read(
        tmp_path, partition_columns=("lang", "year"), carry_columns=("n",), id_column=None
    )
    row = corpus.documents.to_pylist()[0]
    assert (row["lang"], row["year"], row["n"]) == ("pt/BR", None, 1)
    assert read(tmp_path, carry_columns=("lang",)).documents["lang"].to_pylist() == ["pt/BR"]


def test_the_listing_hash_changes_with_any_file(tmp_path):
    def current():
        return discover(SourceConfig(path=str(tmp_path))).listing_hash

    (tmp_path / "a.jsonl").write_bytes(ROW)
    first = current()
    assert first == current()
    (tmp_path / "b.jsonl").write_bytes(ROW)
    second = current()
    os.utime(tmp_path / "b.jsonl", ns=(1, 1))
    third = current()
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert len({first, second, third, current()}) == 4


@pytest.mark.parametrize("store", ["local_url", "memory_url", "moto_url"])
def test_a_source_that_is_not_there_is_an_error(store, request):
    url = request.getfixturevalue(store)
    for path in (f"{url}/nothing", f"{url}/nothing.jsonl", f"{url}/*.jsonl", f"{url}/nothing/"):
        message = error_of(path)
        assert path in message
        assert "there is no such file" in message


def test_a_source_without_a_readable_file_is_an_error(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    message = error_of(tmp_path)
    assert "no file that can be read among 1 found" in message
    assert ".parquet" in message
    assert "source.format" in message
    assert "source.format" in error_of(tmp_path / "a.bin")


def test_a_given_format_reads_files_of_any_name(read, tmp_path):
    (tmp_path / "part-00000").write_bytes(ROW)
    (tmp_path / "part-00001").write_bytes(jsonl({"text": "b"}))
    assert read(tmp_path, format="jsonl").texts == ["a", "b"]


def test_formats_may_be_mixed(read, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"id": 7, "text": "a", "n": 1}))
    write_parquet(tmp_path / "b.parquet", id=["x"], text=["b"], n=pa.array([2], pa.int16()))
    corpus = read(tmp_path, id_column="id", carry_columns=("n",))
    assert corpus.ids == ["7", "x"]
    assert corpus.documents["n"].to_pylist() == [1, 2]


def test_a_json_value_for_a_type_of_another_format_is_rejected(read, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        jsonl(*[{"text": "a", "n": None}] * 300, {"text": "b", "n": 1})
    )
    write_parquet(tmp_path / "b.parquet", text=["c"], n=pa.array([2], pa.int16()))
    corpus = read(tmp_path, carry_columns=("n",))
    assert corpus.documents["n"].type == pa.int16()
    assert corpus.codes == ["wrong_type"]


@pytest.mark.parametrize("ending", ["parquet.gz", "arrow.zst"])
def test_a_format_that_compresses_inside_is_not_unpacked(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    assert "unpack it" in error_of(tmp_path)


def test_a_missing_column_is_an_error_with_a_hint(tmp_path):
    write_parquet(tmp_path / "a.parquet", Id=["1"], text=["a"])
    write_parquet(tmp_path / "b.parquet", Id=["1"], body=["a"])
    message = error_of(tmp_path, id_column="id")
    assert f"{tmp_path}/a.parquet: source.id_column asks for 'id'" in message
    assert "found: Id, text; did you mean 'Id'?" in message
    message = error_of(tmp_path, id_column="Id")
    assert f"{tmp_path}/b.parquet: source.text_columns asks for 'text'" in message
    assert "found: Id, body" in message


def test_a_key_that_no_json_object_has_is_an_error_with_a_hint(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "a", "label": 1}))
    (tmp_path / "b.jsonl").write_bytes(jsonl({"text": "a", "extra": 1}))
    assert discover(SourceConfig(path=str(tmp_path), carry_columns=("extra", "label")))
    message = error_of(tmp_path, carry_columns=("labels",))
    assert "source.carry_columns asks for 'labels'" in message
    assert "did you mean 'label'?" in message
    assert "'text'" in error_of(tmp_path, text_columns=("txt",))


def test_a_csv_with_another_separator_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("id;text\n1;a\n")
    message = error_of(tmp_path, id_column="id")
    assert "found: id;text" in message


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    assert "more than once" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "config"),
    [
        ("id", pa.array([1.5]), {"id_column": "id"}),
        ("id", pa.array([True]), {"id_column": "id"}),
        ("text", pa.array([1]), {}),
        ("text", pa.array([["a"]]), {}),
        ("p", pa.array([1.5]), {"partition_columns": ("p",)}),
        ("c", pa.array([(1, 2, 3)], pa.month_day_nano_interval()), {"carry_columns": ("c",)}),
    ],
)
def test_a_column_of_an_unusable_type_is_an_error(tmp_path, column, value, config):
    table = {"text": pa.array(["a"]), column: value}
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        schema = pa.table(table).schema
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table(table))
    message = error_of(tmp_path, **config)
    assert f"names {column!r}, which has type" in message


@pytest.mark.parametrize("name", ["ray.data.arrow_pickled_object", "somebody.elses_type"])
@pytest.mark.parametrize("is_nested", [True, False])
def test_an_extension_type_that_may_run_code_is_refused(tmp_path, name, is_nested):
    # Ray registers its types, the other one nobody knows.
    importlib.import_module("ray.data")
    named = {"ARROW:extension:name": name, "ARROW:extension:metadata": ""}
    field = pa.field("c", pa.binary(), metadata=named)
    column = pa.array([b"cos\nsystem\n"], pa.binary())
    if is_nested:
        column = pa.StructArray.from_arrays([column], fields=[field.with_name("x")])
        field = pa.field("c", column.type)
    schema = pa.schema([pa.field("text", pa.string()), field])
    pq.write_table(pa.table([["a"], column], schema=schema), tmp_path / "a.parquet")
    for carry_columns in ((), ("c",)):
        message = error_of(tmp_path, carry_columns=carry_columns)
        assert name in message
        assert "run code" in message


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((pa.int8(), pa.int32()), pa.int32()),
        ((pa.uint8(), pa.int8()), pa.int16()),
        ((pa.uint32(), pa.int16()), pa.int64()),
        ((pa.int64(), pa.float32()), pa.float64()),
        ((pa.float32(), pa.float64()), pa.float64()),
        ((pa.null(), pa.bool_()), pa.bool_()),
        ((pa.large_string(), pa.dictionary(pa.int8(), pa.string())), pa.string()),
        ((pa.large_binary(), pa.binary()), pa.binary()),
        ((pa.list_(pa.int8()), pa.large_list(pa.int8())), pa.list_(pa.int8())),
        ((pa.null(), pa.null()), pa.string()),
    ],
)
def test_types_of_carried_columns_are_widened(read, tmp_path, types, expected):
    for number, kind in enumerate(types):
        values = pa.array([None], kind)
        write_parquet(tmp_path / f"{number}.parquet", text=[f"a{number}"], c=values)
    corpus = read(tmp_path, carry_columns=("c",))
    assert corpus.discovery.columns.field("c").type == expected
    assert corpus.documents["c"].type == expected
    reversed_paths = tuple(f"{tmp_path}/{number}.parquet" for number in (1, 0))
    assert read(reversed_paths, carry_columns=("c",)).discovery.columns.field("c").type == expected


@pytest.mark.parametrize(
    "types",
    [
        (pa.int64(), pa.string()),
        (pa.bool_(), pa.int8()),
        (pa.uint64(), pa.int64()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC")),
        (pa.struct({"a": pa.int64()}), pa.struct({"a": pa.string()})),
    ],
)
def test_types_that_do_not_go_together_are_an_error_that_names_both_files(tmp_path, types):
    for number, kind in enumerate(types):
        values = pa.array([None], kind)
        write_parquet(tmp_path / f"{number}.parquet", text=["a"], c=values)
    message = error_of(tmp_path, carry_columns=("c",))
    for number, kind in enumerate(types):
        assert f"{tmp_path}/{number}.parquet" in message
        assert f"type {kind}" in message


def test_an_integer_without_an_exact_double_is_rejected(read, tmp_path):
    write_parquet(tmp_path / "a.parquet", text=["a", "b"], c=[1, 2**53 + 1])
    write_parquet(tmp_path / "b.parquet", text=["c"], c=[0.5])
    corpus = read(tmp_path, carry_columns=("c",))
    assert corpus.texts == ["a", "c"]
    assert corpus.codes == ["wrong_type"]


BAD_FILES = {
    "zero.parquet": b"",
    "cut.parquet": b"PAR1 and then nothing",
    "not.parquet": b"<html>404</html>",
    "not.arrow": b"<html>404</html>",
    "cut.arrow": b"ARROW1\0\0 and then nothing",
    "one.json": b'{\n  "data": [\n    {"text": "a"}\n  ]\n}\n',
    "array.json": b'[{"text": "a"}]',
    "array_lines.json": b'[{"text": "a"},\n{"text": "b"}\n]',
    "not.jsonl.gz": b"no gzip",
    "zero.jsonl.gz": b"",
    "cut.csv.xz": b"\xfd7zXZ\0",
    "wide.txt": "text".encode("utf-16"),
    "wide.csv": "text\n".encode("utf-16"),
    "quote.csv": b'"text\n',
    "blank.csv": b"\n\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_stops_the_run_before_any_work_or_is_rejected(read, tmp_path, name):
    (tmp_path / name).write_bytes(BAD_FILES[name])
    (tmp_path / "good.jsonl").write_bytes(jsonl({"text": "good"}))
    message = error_of(tmp_path)
    assert f"{tmp_path}/{name}" in message
    assert "source.on_bad_file: reject" in message
    corpus = read(tmp_path, on_bad_file="reject")
    assert corpus.texts == ["good"]
    assert corpus.discovery.files_rejected == 1
    row = corpus.discovery.rejected[0]
    assert (row.source, row.offset, row.stage) == (f"{tmp_path}/{name}", None, "read")
    assert row.code in ("corrupt_file", "truncated_file")


def test_a_corpus_of_bad_files_alone_is_an_error_in_any_case(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"no")
    message = error_of(tmp_path, on_bad_file="reject")
    assert "and 1 more of 2 files" in message
    assert "is source.format right?" in message


def test_files_without_a_row_are_fine_and_the_types_are_known(read, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.csv").write_bytes(b"")
    write_parquet(tmp_path / "d.parquet", text=pa.array([], pa.string()), c=pa.array([], "int8"))
    corpus = read(tmp_path, carry_columns=("c", "text"))
    assert corpus.documents is None
    assert corpus.discovery.columns.field("c").type == pa.int8()
    assert [file.size_bytes for file in corpus.discovery.files[:2]] == [0, 0]


@pytest.mark.parametrize("key", ["partition_columns", "carry_columns", "text_columns"])
def test_a_column_named_twice_in_the_configuration_is_an_error(tmp_path, key):
    with pytest.raises(ConfigError, match=f"source.{key}"):
        discover(SourceConfig(path=str(tmp_path), **{key: ("a", "a")}))


def test_the_text_cannot_partition_the_output(tmp_path):
    with pytest.raises(ConfigError, match="'text'"):
        discover(SourceConfig(path=str(tmp_path), partition_columns=("text",)))
