"""Arrow IPC files and streams, good, damaged and made to harm."""

import io
import random

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from pipeline.errors import SourceError


def table(num_rows):
    return pa.table({"id": range(num_rows), "text": [f"text {n}" for n in range(num_rows)]})


def file_bytes(rows, chunk_rows, **options):
    sink = io.BytesIO()
    writer_options = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(sink, rows.schema, options=writer_options) as writer:
        writer.write_table(rows, max_chunksize=chunk_rows)
    return sink.getvalue()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("split_bytes", [1, 2_000, 1 << 20])
def test_row_numbers_count_through_the_file_whatever_the_splits(
    read, tmp_path, compression, split_bytes
):
    data = file_bytes(table(100), 9, compression=compression)
    (tmp_path / "a.arrow").write_bytes(data)
    corpus = read(tmp_path, split_bytes=split_bytes, id_column="id")
    assert corpus.documents["_offset"].to_pylist() == list(range(100))
    assert corpus.ids == [str(n) for n in range(100)]


def test_feather_2_is_read_and_feather_1_is_another_format(read, tmp_path):
    pyarrow.feather.write_feather(table(3), str(tmp_path / "a.feather"))
    assert read(tmp_path).documents.num_rows == 3
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(SourceError, match="Feather version 1"):
        read(tmp_path)


def test_offsets_that_point_outside_of_the_data_are_a_bad_file(read, tmp_path):
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1 << 30, 2)))
    hostile = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    batch = pa.RecordBatch.from_arrays([hostile], ["text"])
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    (tmp_path / "a.arrow").write_bytes(sink.getvalue())
    with pytest.raises(SourceError, match="not a readable Arrow IPC file"):
        read(tmp_path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_is_a_rejected_row(read, tmp_path, kind):
    raw = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    if not pa.types.is_string(kind):
        broken = broken.cast(kind)
    (tmp_path / "a.arrow").write_bytes(file_bytes(pa.table({"text": broken}), 3))
    corpus = read(tmp_path)
    assert corpus.texts == ["a", "c"]
    assert corpus.codes == ["not_utf8"]


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_files_damaged_anywhere_give_documents_or_an_error_and_never_a_crash(
    read, tmp_path, ending
):
    rows = table(200)
    if ending == "arrow":
        good = file_bytes(rows, 50)
    else:
        sink = io.BytesIO()
        pa.parquet.write_table(rows, sink, row_group_size=50)
        good = sink.getvalue()
    chance = random.Random(5)
    num_errors = 0
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / f"a.{ending}").write_bytes(damaged)
        try:
            read(tmp_path, id_column="id")
        except SourceError:
            num_errors += 1
    assert num_errors
