"""Every rejected row shows what was found, where there is something to show."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import SourceConfig, TextConfig
from pipeline.excerpt import MAX_EXCERPT_CHARS
from pipeline.records import REJECTED_SCHEMA
from pipeline.sources.discover import discover
from pipeline.sources.json_values import MAX_NESTING
from pipeline.sources.read import read_documents
from pipeline.sources.reasons import Reason

GOOD = b'{"id": "g", "text": "good", "n": 1, "lang": "en"}'
LINES = [
    (b'{"id": "x", "text": "a" "b"}', "bad_json", '{"id": "x", "text": "a" "b"}'),
    (b'{"id": 1}' + b" " * 300 + b"oops", "bad_json", "…" + " " * 60 + "oops"),
    (b"[" * 50_000, "bad_json", "[" * 199 + "…"),
    (b'["a list"]', "not_an_object", '["a list"]'),
    (b'{"text": "caf\xe9 \x1b[2J"}', "not_utf8", '{"text": "caf\\xe9 \\x1b[2J"}'),
    (b'{"id": "x", "text": "so \\ud83d"}', "not_utf8", r"so \ud83d"),
    (b'{"txt": "a", "id": "x"}', "missing_field", '{"txt": "a", "id": "x"}'),
    (b'{"id": "x", "text": ["a", 1]}', "wrong_type", '["a", 1]'),
    (b'{"id": "x", "text": "a", "n": "' + b"9" * 999 + b'"}', "wrong_type", '"' + "9" * 198 + "…"),
    (b'{"id": null, "text": "find\\nme"}', "null_id", r"find\nme"),
    (b'{"id": "", "text": "find me"}', "empty_id", "find me"),
    (b'{"id": "' + b"i" * 1025 + b'", "text": "a"}', "id_too_long", "i" * 199 + "…"),
    (b'{"id": "x", "text": null}', "null_text", None),
    (b'{"id": "x", "text": ""}', "empty_text", None),
    (b'{"id": "x", "text": " \\t\\u0000"}', "no_tokens", r" \t\x00"),
    (b'{"id": "x", "text": "' + b"t" * 2001 + b'"}', "document_too_large", "t" * 199 + "…"),
    (b'{"id": "x", "text": "a", "lang": "' + b"v" * 300 + b'"}', "bad_partition", "v" * 199 + "…"),
    (b'{"text": "' + b"l" * (2 << 20), "line_too_long", '{"text": "' + "l" * 189 + "…"),
]  # fmt: skip


def read(directory, **config):
    source = SourceConfig(path=str(directory), on_bad_file="reject", **config)
    discovery = discover(source)
    tables = [
        batch.rejected.table
        for split in discovery.splits
        for batch in read_documents(split, source, TextConfig())
    ]
    for table in tables:
        assert table.schema.equals(REJECTED_SCHEMA)
        table.validate(full=True)
    return [*discovery.rejected, *pa.concat_tables(tables).to_pylist()]


@pytest.mark.parametrize(("line", "code", "shown"), LINES, ids=lambda value: str(value)[:20])
def test_a_rejected_line_shows_what_was_found(tmp_path, line, code, shown):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD, line, GOOD.replace(b'"g"', b'"h"'), b""]))
    (row,) = read(
        tmp_path,
        id_column="id",
        carry_columns=("n",),
        partition_columns=("lang",),
        max_document_bytes=2000,
    )
    assert (row["code"], row["excerpt"]) == (code, shown)
    assert row["offset"] == len(GOOD) + 1


def test_every_reason_that_concerns_a_line_is_among_these():
    codes = {code for _, code, _ in LINES}
    assert set(map(str, Reason)) - codes == {"corrupt_file", "truncated_file", "bad_csv_row"}


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (b'"b" x,"text"\n', '"b" x,"text"\\n'),
        (b"only one field\n", r"only one field\n"),
        (b'b,"two\nlines",3\n', r'b,"two\nlines",3\n'),
    ],
)
def test_a_csv_row_is_shown_as_it_stands_in_the_file(tmp_path, row, shown):
    (tmp_path / "a.csv").write_bytes(b"id,text\na,good\n" + row + b"c,good\n")
    (found,) = read(tmp_path, id_column="id")
    assert (found["code"], found["offset"], found["excerpt"]) == ("bad_csv_row", 1, shown)


@pytest.mark.parametrize(
    ("name", "data", "code", "shown"),
    [
        ("b.parquet", b"<html>404\n</html>", "corrupt_file", r"<html>404\n</html>"),
        ("b.arrow", b"\0\1\2 no arrow", "corrupt_file", r"\x00\x01\x02 no arrow"),
        ("b.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-9], "truncated_file", r"\x1f\x8b"),
        ("b.csv", b'id,text\nx,"never closed\n', "corrupt_file", r'x,"never closed\n'),
        ("b.txt", "UTF-16".encode("utf-16"), "corrupt_file", r"\xff\xfeU\x00T"),
        ("b.json", b'{\n"id": 1\n}', "corrupt_file", "{"),
    ],
)
def test_a_bad_file_shows_where_it_went_wrong_or_how_it_begins(tmp_path, name, data, code, shown):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / name).write_bytes(data)
    rows = read(tmp_path)
    (row,) = [row if isinstance(row, dict) else vars(row) for row in rows]
    assert (row["code"], row["offset"]) == (code, None)
    assert row["excerpt"].startswith(shown)
    assert len(row["excerpt"]) <= MAX_EXCERPT_CHARS


def test_columns_of_typed_files_show_bytes_and_numbers(tmp_path):
    table = pa.table(
        {
            "id": pa.array([b"a", b"x\xff" + b"y" * 500, b"c"]).cast(pa.binary()),
            "text": ["one", "two", "three"],
            "n": pa.array([1, 2, (1 << 60) + 1]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "j", "text": "a", "n": 0.5}\n')
    rows = read(tmp_path, id_column="id", carry_columns=("n",))
    assert [(row["code"], row["excerpt"]) for row in rows] == [
        ("not_utf8", "x\\xff" + "y" * 194 + "…"),
        ("wrong_type", str((1 << 60) + 1)),
    ]


def test_nesting_is_limited_by_a_number_and_not_by_how_deep_the_reader_is(tmp_path):
    def line(depth):
        value = "[" * (depth - 1) + "]" * (depth - 1)
        return f'{{"id": "{depth}", "text": "a", "n": {value}}}\n'

    (tmp_path / "a.jsonl").write_text(line(3) + line(MAX_NESTING) + line(MAX_NESTING + 1))
    (row,) = read(tmp_path, id_column="id", carry_columns=("n",))
    assert row["code"] == "bad_json"
    assert f"more than {MAX_NESTING} levels" in row["message"]
    many = json.dumps({"id": "x", "text": "[{" * 500, "n": [[]] * 500})
    (tmp_path / "a.jsonl").write_text(many)
    assert read(tmp_path, id_column="id", carry_columns=("n",)) == []
