"""Labelled sets in all the packings and formats they come in, and what is wrong with a bad one."""

import gzip
import lzma

import pytest

from pipeline.errors import SourceError
from pipeline.evaluation.read_text import columns_of, find_file, read_lines, read_rows

CSV = 'text,label\n"two\nlines, one cell",a\nb,c\n'
ROWS = [{"text": "two\nlines, one cell", "label": "a"}, {"text": "b", "label": "c"}]
PACKERS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


@pytest.mark.parametrize("ending", PACKERS)
def test_a_table_is_the_same_packed_or_plain(ending, tmp_path):
    (tmp_path / f"set.csv{ending}").write_bytes(PACKERS[ending](CSV.encode("utf-8-sig")))
    path = find_file(tmp_path, "set.csv")
    assert list(read_rows(path)) == ROWS


def test_a_tsv_takes_quotation_marks_as_they_are(tmp_path):
    path = tmp_path / "set.tsv"
    path.write_text('sentence1\tscore\n"Stop", he said\t3\nan inch: 1"\t2\n')
    assert [row["sentence1"] for row in read_rows(path)] == ['"Stop", he said', 'an inch: 1"']


def test_json_lines_become_text(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"text": "a", "label": 1}\n\n{"text": null, "label": 0.5}\n')
    assert list(read_rows(path)) == [{"text": "a", "label": "1"}, {"text": "", "label": "0.5"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.csv", b"a,b\n1,2,3\n", "line 2 has 3 fields, the header 2"),
        ("set.csv", b"", "is empty"),
        ("set.jsonl", b"{\n", "row 1 is not JSON"),
        ("set.jsonl", b"[1]\n", "row 1 is not a JSON object"),
        ("set.csv", b"a\n\xff\n", "byte 2 is not utf-8"),
        ("set.csv.xz", b"not packed", "cannot be read"),
        ("set.csv.gz", gzip.compress(b"a,b\n")[:-9], "cannot be read"),
        ("set.parquet", b"PAR1", "expected .jsonl, .csv or .tsv"),
    ],
)
def test_a_bad_file_is_named_with_its_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_column_is_named_beside_those_there_are(tmp_path):
    with pytest.raises(SourceError, match="no column label; its columns are text, class"):
        columns_of(tmp_path / "x.csv", [{"text": "a", "class": "b"}], ("text", "label"))
    rows = [{"text": "a", "label": "b"}, {"text": "c"}]
    with pytest.raises(SourceError, match="row 2: no column label; its columns are text"):
        columns_of(tmp_path / "x.jsonl", rows, ("text", "label"))
    with pytest.raises(SourceError, match="has no rows"):
        columns_of(tmp_path / "x.csv", [], ("text",))


def test_lines_lose_their_ends_and_blank_ones_go(tmp_path):
    (tmp_path / "x").write_bytes(b"a\r\n\n  \nb c\n")
    assert read_lines(tmp_path / "x") == ["a", "b c"]
    assert find_file(tmp_path, "y") is None
