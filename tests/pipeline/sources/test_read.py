"""What holds for every format: the same documents, in any store, twice the same."""

import bz2
import csv
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig, TextConfig
from pipeline.errors import SourceError
from pipeline.records import DOCUMENT_FIELDS, SourceSplit
from pipeline.sources.content_hash import derived_ids
from pipeline.sources.discover import discover
from pipeline.sources.read import read_documents
from pipeline.storage import open_storage

ROWS = [
    {"id": f"d{number}", "title": None if number % 3 else f"T{number}", "text": text, "lang": lang}
    for number, (text, lang) in enumerate(
        [
            ("Plain text.", "en"),
            ('Quotes "and", commas\nand lines', "en"),
            ("Cafe\u0301 au lait", "fr"),
            ("你好。", None),
            ("👍 emoji", "en"),
        ]
        * 5
    )
]
CONFIG = {
    "id_column": "id",
    "text_columns": ("title", "text"),
    "partition_columns": ("lang",),
    "carry_columns": ("title", "text"),
}


def as_parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=7)
    return buffer.getvalue()


def as_arrow(rows):
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


def as_stream(rows):
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, **options):
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


FILES = {
    "a.parquet": as_parquet(ROWS),
    "a.arrow": as_arrow(ROWS),
    "a.feather": as_arrow(ROWS),
    "a.ipc": as_stream(ROWS),
    "a.jsonl": as_jsonl(ROWS),
    "a.ndjson.gz": pa.compress(as_jsonl(ROWS), codec="gzip", asbytes=True),
    "a.json.zst": pa.compress(as_jsonl(ROWS), codec="zstd", asbytes=True),
    "a.csv": as_csv(ROWS),
    "a.csv.bz2": bz2.compress(as_csv(ROWS)),
    "a.csv.xz": lzma.compress(as_csv(ROWS)),
    "a.tsv": as_csv(ROWS, delimiter="\t"),
}


@pytest.mark.parametrize("store", ["local_url", "memory_url", "moto_url"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_in_every_store_gives_the_same_documents(read, request, store, name):
    url = request.getfixturevalue(store)
    open_storage(url).put(name, FILES[name])
    corpus = read(url, **CONFIG)
    documents = corpus.documents
    names = [f.name for f in DOCUMENT_FIELDS]
    assert documents.schema.names == [*names, "lang", "title"]
    assert corpus.discovery.columns.names == ["lang", "title", "text"]
    assert [f.name for f in corpus.discovery.carried_fields] == ["title", "text"]
    assert corpus.rejected == []
    assert documents["_source"].unique().to_pylist() == [open_storage(url).url_of(name)]
    assert corpus.ids == [row["id"] for row in ROWS]
    assert documents["lang"].to_pylist() == [row["lang"] for row in ROWS]
    assert documents["title"].to_pylist() == [row["title"] for row in ROWS]
    assert corpus.texts[:3] == ["T0\nPlain text.", ROWS[1]["text"], "Café au lait"]
    assert documents["content_hash"].to_pylist() == expected_hashes(read)


def expected_hashes(read):
    open_storage("memory://expected").put("a.parquet", FILES["a.parquet"])
    return read("memory://expected", **CONFIG).documents["content_hash"].to_pylist()


@pytest.mark.parametrize("name", FILES)
def test_splits_read_the_same_rows_as_the_whole_file(read, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    whole = read(tmp_path, **CONFIG)
    split = read(tmp_path, **CONFIG, split_bytes=200)
    assert split.documents.equals(whole.documents)
    assert [s.index for s in split.discovery.splits] == list(range(len(split.discovery.splits)))
    can_split = name in ("a.parquet", "a.arrow", "a.feather", "a.jsonl")
    assert (len(split.discovery.splits) > 1) == can_split


def test_without_an_id_column_equal_documents_get_equal_ids(read, tmp_path):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    corpus = read(tmp_path)
    assert corpus.ids[0] == corpus.ids[2] != corpus.ids[1]
    expected = derived_ids(
        pa.array(["a", "b", "a"]), corpus.documents["content_hash"].combine_chunks()
    )
    assert corpus.ids == expected.to_pylist()


def test_a_file_that_changed_since_it_was_listed_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_jsonl(ROWS))
    source = SourceConfig(path=str(tmp_path), id_column="id")
    split = discover(source).splits[0]
    path.write_bytes(as_jsonl(ROWS[1:]))
    with pytest.raises(SourceError, match="has changed since the run listed it"):
        list(read_documents(split, source, TextConfig()))
    path.unlink()
    with pytest.raises(SourceError, match="is gone since the run listed it"):
        list(read_documents(split, source, TextConfig()))


def test_a_split_knows_all_that_reading_takes(tmp_path):
    import pickle

    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS))
    source = SourceConfig(path=str(tmp_path), **CONFIG)
    split = pickle.loads(pickle.dumps(discover(source).splits[0]))
    assert sum(b.documents.num_rows for b in read_documents(split, source, TextConfig())) == 25
    bare = SourceSplit(0, split.path, "jsonl", 0, None, 0, version=split.version)
    with pytest.raises(ValueError, match=r"comes from discover\(\)"):
        list(read_documents(bare, source, TextConfig()))


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"id": None, "text": "a"}, "null_id"),
        ({"id": "", "text": "a"}, "empty_id"),
        ({"id": "x" * 1025, "text": "a"}, "id_too_long"),
        ({"id": "x", "text": None}, "null_text"),
        ({"id": "x", "text": ""}, "empty_text"),
        ({"id": "x", "text": " \n\t\u3000"}, "no_tokens"),
        ({"id": "x", "text": "\0\x01\u200b"}, "no_tokens"),
        ({"id": "x", "text": "é" * 501}, "document_too_large"),
        ({"id": "x", "text": "\ufdfa" * 100}, "document_too_large"),  # 18 times as long in NFKC
        ({"id": "x", "text": "a", "lang": "v" * 300}, "bad_partition"),
        ({"id": "x", "text": "a", "lang": "__HIVE_DEFAULT_PARTITION__"}, "bad_partition"),
    ],
)
@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
def test_a_row_that_is_no_document_is_rejected_and_its_neighbours_are_read(
    read, tmp_path, row, code, write
):
    good = {"id": "good", "text": "x" * 1000, "lang": "en"}
    rows = [good, {"lang": None} | row, good | {"id": "good 2"}]
    ending = {as_parquet: "parquet", as_jsonl: "jsonl"}[write]
    (tmp_path / f"a.{ending}").write_bytes(write(rows))
    config = {"id_column": "id", "partition_columns": ("lang",), "max_document_bytes": 1000}
    corpus = read(tmp_path, text=TextConfig(unicode_form="NFKC"), **config)
    assert corpus.ids == ["good", "good 2"]
    assert corpus.codes == [code]
    rejected = corpus.rejected[0]
    assert rejected.source == str(tmp_path / f"a.{ending}")
    assert rejected.offset == (1 if write is as_parquet else len(as_jsonl([good])))
    assert rejected.id == (None if row["id"] is None else row["id"][:1024])
    assert rejected.message


def test_batches_are_bounded_in_rows_and_in_text(read, tmp_path):
    rows = [{"id": str(i), "text": "x" * 30} for i in range(10_000)]
    rows[5_000]["text"] = "y" * (20 << 20)
    rows[5_001]["text"] = "z" * (10 << 20)
    rows[5_002]["text"] = "z" * (10 << 20)
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = read(tmp_path, id_column="id", max_document_bytes=32 << 20)
    assert corpus.ids == [row["id"] for row in rows]
    assert max(corpus.batch_rows) <= 8192
    assert 1 in corpus.batch_rows


def test_the_text_is_normalised_once_and_before_it_is_hashed(read, tmp_path):
    rows = [{"id": "1", "text": "e\u0301 ①"}, {"id": "2", "text": "é ①"}]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    for form, expected in (("NFC", "é ①"), ("NFKC", "é 1")):
        corpus = read(tmp_path, text=TextConfig(unicode_form=form), id_column="id")
        assert corpus.texts == [expected] * 2
        hashes = corpus.documents["content_hash"].to_pylist()
        assert hashes[0] == hashes[1]
    assert read(tmp_path, text=TextConfig(unicode_form=None)).texts == ["e\u0301 ①", "é ①"]


def test_parts_of_the_text_are_joined_and_null_ones_left_out(read, tmp_path):
    rows = [
        {"a": "x", "b": "y", "c": "z"},
        {"a": None, "b": "y", "c": None},
        {"b": "y", "c": ""},
        {"a": None, "b": None, "c": None},
    ]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    corpus = read(tmp_path, text_columns=("a", "b", "c"), text_separator=" | ")
    assert corpus.texts == ["x | y | z", "y", "y | "]
    assert corpus.codes == ["null_text"]
