"""Files that expand to far more than they store: an error or a rejected file, in bounded memory.

Each file is read by a process of its own, whose address space is limited: what would fill the
memory of a machine fails there instead.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources.expansion import FREE_EXPANSION_BYTES, MAX_EXPANSION, Expansion, slices
from pipeline.sources.reasons import BadFileError

ROOT = Path(__file__).parents[2]
# pyarrow and its threads take about 1 GiB of addresses before the first byte is read.
ADDRESS_SPACE_BYTES = 5 << 30
MAX_RESIDENT_BYTES = 800 << 20

READER = """
import json, resource, sys
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import PipelineError
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
source = SourceConfig(path=sys.argv[1], **json.loads(sys.argv[2]))
found = {"documents": 0, "codes": []}
try:
    for split in discover(source).splits:
        for batch in read_documents(split, source, TextConfig()):
            found["documents"] += batch.documents.num_rows
            found["codes"] += [row.code for row in batch.rejected]
except PipelineError as error:
    found["error"] = str(error)
# Not getrusage, which counts the process that started this one too.
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if "VmHWM" in line)
print(json.dumps({**found, "peak": peak}))
"""


def read_apart(path, **config):
    """What reading a file gives in a limited process: documents, codes, perhaps an error."""
    words = [sys.executable, "-c", READER, str(path), json.dumps(config), str(ADDRESS_SPACE_BYTES)]
    # Timeouts only keep a hanging test from hanging the run.
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["peak"] < MAX_RESIDENT_BYTES
    return found


def assert_refused(path, **config):
    found = read_apart(path, **config)
    assert str(path) in found["error"]
    assert "expand" in found["error"]
    assert found["documents"] < 100  # the first may be right


ZEROS = bytes(16 << 20)
MEMBERS = {
    "gz": lambda: gzip.compress(ZEROS),
    "zst": lambda: pa.compress(ZEROS, codec="zstd", asbytes=True),
    "bz2": lambda: bz2.compress(ZEROS),
    "xz": lambda: lzma.compress(ZEROS, preset=0),
}


@pytest.mark.parametrize(
    ("ending", "text_unit"), [*((ending, "line") for ending in MEMBERS), ("zst", "file")]
)
def test_ten_gigabytes_without_a_newline_are_refused(tmp_path, ending, text_unit):
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(MEMBERS[ending]() * 640)
    assert_refused(path, text_unit=text_unit)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_bombs_in_other_formats_are_refused_too(tmp_path, name):
    head = gzip.compress(b'{"text": "a b"}\n' if "jsonl" in name else b"text\n")
    (tmp_path / name).write_bytes(head + gzip.compress(ZEROS) * 640)
    assert_refused(tmp_path / name)


def test_with_rejection_a_bomb_is_one_rejected_file_and_the_others_are_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(ZEROS) * 640)
    (tmp_path / "b.txt").write_text("a good line\n")
    found = read_apart(tmp_path, on_bad_file="reject")
    assert found["documents"] == 1
    assert found["codes"] == ["corrupt_file"]


def test_data_that_expand_as_text_does_are_read(tmp_path):
    lines = b"".join(b"document number %d has a few words\n" % n for n in range(300_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines))
    assert read_apart(tmp_path / "a.txt.gz")["documents"] == 300_000


def test_the_limit_lets_a_large_part_pass_and_ends_where_it_says():
    expansion = Expansion("a")
    expansion.add(FREE_EXPANSION_BYTES + MAX_EXPANSION * 10, 10)
    with pytest.raises(BadFileError, match="256 MiB and 200 times"):
        expansion.add(1, 10)


LONG = "a " * (5 << 20)


def write_parquet(path, table, **options):
    plain = {"data_page_size": 1 << 30, "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(table, path, compression="zstd", write_statistics=False, **{**plain, **options})


def repeated(num_rows):
    """One long text, many times."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array([LONG]))


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_dictionary_that_stands_for_terabytes_is_refused(tmp_path, store_schema):
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"text": repeated(500_000)}), store_schema=store_schema)
    assert path.stat().st_size < 50_000
    assert_refused(path)


def test_texts_that_repeat_the_one_before_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    encoding = {"text": "DELTA_BYTE_ARRAY"}
    write_parquet(
        path, pa.table({"text": [LONG] * 40}), use_dictionary=False, column_encoding=encoding
    )
    assert_refused(path)


def test_a_page_of_a_gigabyte_in_a_few_kilobytes_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"text": ["a" * (300 << 20)]}), use_dictionary=False)
    assert_refused(path)


def test_more_rows_than_the_bytes_can_mean_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"text": pa.nulls(60_000_000, pa.string())}))
    assert_refused(path)


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_a_row_with_a_list_of_absurd_length_is_refused(tmp_path, kind):
    path = tmp_path / "a.parquet"
    if kind == "texts":
        values, offsets = repeated(200_000), [0, 200_000]
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    else:
        values, offsets = pa.nulls(80_000_000, pa.int8()), [0, 80_000_000]
        column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    write_parquet(path, pa.table({"text": ["a b"], "x": column}), store_schema=False)
    assert_refused(path, carry_columns=["x"])
    assert read_apart(path)["documents"] == 1


def test_a_page_that_declares_more_than_it_holds_is_a_bad_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a b"] * 100}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    # The page's header: type 0, then the uncompressed size as a zigzag varint; 2 GiB - 1 fits in.
    place = data.index(b"\x15\x00\x15") + 3
    end = place + 2
    assert data[place] >= 0x80
    assert data[end - 1] < 0x80
    data[place:end] = b"\xff\x7f"
    path.write_bytes(data)
    found = read_apart(path)
    assert "not a readable Parquet file" in found["error"]


def test_ordinary_dictionaries_long_values_and_lists_are_read_whole(tmp_path):
    texts = [f"text {n % 50} {'x' * (n % 7)}" for n in range(50_000)]
    table = pa.table(
        {
            "text": [*texts, "a long one " * 100_000],
            "tags": [["a", "b"], [], None] * 16_667,
        }
    )
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}):
        path = tmp_path / "a.parquet"
        pq.write_table(table, path, row_group_size=20_000, **options)
        assert read_apart(path, carry_columns=["tags"])["documents"] == table.num_rows


def write_arrow(path, table, new=pa.ipc.new_file, **options):
    with pa.OSFile(str(path), "wb") as sink:
        write_options = pa.ipc.IpcWriteOptions(**options)
        with new(sink, table.schema, options=write_options) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_compressed_buffers_of_absurd_length_are_refused(tmp_path, new):
    zeros = pa.array([bytes(300 << 20)], pa.large_binary())
    table = pa.table({"text": ["a b"], "x": zeros})
    write_arrow(tmp_path / "a.arrow", table, new, compression="zstd")
    assert_refused(tmp_path / "a.arrow")


def test_a_dictionary_in_arrow_that_stands_for_terabytes_is_refused(tmp_path):
    # Beside many short ones, which make the mean small.
    texts = pa.array([LONG, *(str(n) for n in range(100_000))])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500_000, pa.int32()), texts)
    write_arrow(tmp_path / "a.arrow", pa.table({"text": column}), compression="zstd")
    assert_refused(tmp_path / "a.arrow")


def test_views_of_one_long_text_are_refused(tmp_path):
    view = pa.array([LONG.encode()], pa.binary_view())
    _, views, data = view.buffers()
    many = pa.py_buffer(views.to_pybytes() * 100_000)
    column = pa.Array.from_buffers(pa.binary_view(), 100_000, [None, many, data])
    write_arrow(tmp_path / "a.arrow", pa.table({"text": column}), compression="zstd")
    assert_refused(tmp_path / "a.arrow")


def test_batches_of_nothing_but_rows_are_refused(tmp_path):
    write_arrow(tmp_path / "a.arrow", pa.table({"text": pa.nulls(200_000_000)}))
    assert_refused(tmp_path / "a.arrow")


def test_slices_are_whole_rows_of_bounded_size():
    texts = pa.array(["a" * (40 << 20), "b", "c" * (40 << 20), "d" * (70 << 20)])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, None, 0], pa.int8()), texts)
    batch = pa.record_batch({"text": column})
    parts = list(slices(batch))
    assert [part.num_rows for part, _ in parts] == [2, 1, 1, 2]
    assert sum(part.num_rows for part, _ in parts) == batch.num_rows
    sizes = [size for _, size in parts]
    assert sizes[0] == (40 << 20) + 1 + 2 * 16
    assert sizes[2] == (70 << 20) + 16


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_nesting_and_columns_without_end_are_refused(tmp_path, ending):
    def write(table):
        path = tmp_path / f"a.{ending}"
        write_arrow(path, table) if ending == "arrow" else pq.write_table(table, path)
        return path

    many = pa.table({"text": ["a b"], **{f"c{n}": [n] for n in range(10_000)}})
    assert "10001 columns, at most 10000" in read_apart(write(many))["error"]
    nested = pa.int8()
    for _ in range(500):
        nested = pa.struct([("a", nested)])
    deep = pa.table({"text": pa.array([], pa.string()), "x": pa.array([], nested)})
    assert "not a readable" in read_apart(write(deep))["error"]


def test_the_refusal_is_a_source_error_here_too(tmp_path):
    from pipeline.config import SourceConfig
    from pipeline.sources.discover import discover

    path = tmp_path / "a.parquet"
    write_parquet(path, pa.table({"text": pa.nulls(20_000_000, pa.string())}))
    with pytest.raises(SourceError, match="a.parquet"):
        discover(SourceConfig(path=str(path)))
