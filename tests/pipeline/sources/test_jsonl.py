"""JSON Lines: every line is a document or a rejected row at its byte offset."""

import json
import lzma

import pyarrow as pa
import pytest

from pipeline.errors import SourceError

SLACK = 1 << 20


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="a.jsonl"):
        (tmp_path / name).write_bytes(b"\n".join(lines))
        return tmp_path / name

    return write


BAD_LINES = [
    (b'{"id": "x", "text": "a"', "bad_json", "parse"),
    (b"{'id': 1}", "bad_json", "parse"),
    (b"[" * 100_000, "bad_json", "parse"),
    (b'{"id": "x", "text": "a", "n": ' + b"9" * 5_000 + b"}", "bad_json", "parse"),
    (b"[1, 2]", "not_an_object", "parse"),
    (b'"text"', "not_an_object", "parse"),
    (b"null", "not_an_object", "parse"),
    (b'{"id": "x", "text": "\xff"}', "not_utf8", "validate"),
    (b'{"id": "x", "text": "\\ud83d"}', "not_utf8", "validate"),
    (b'{"id": "\\udead", "text": "a"}', "not_utf8", "validate"),
    (b'{"id": "x", "text": "a", "s": "\\ud83d"}', "not_utf8", "validate"),
    (b'{"text": "a"}', "missing_field", "parse"),
    (b'{"id": "x"}', "missing_field", "parse"),
    (b'{"id": 1.0, "text": "a"}', "wrong_type", "validate"),
    (b'{"id": true, "text": "a"}', "wrong_type", "validate"),
    (b'{"id": {}, "text": "a"}', "wrong_type", "validate"),
    (b'{"id": "x", "text": 5}', "wrong_type", "validate"),
    (b'{"id": "x", "text": ["a"]}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "n": "1"}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "n": true}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "n": 9223372036854775808}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "b": 1}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "f": 9007199254740993}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "p": 1.5}', "wrong_type", "validate"),
    (b'{"id": "x", "text": "a", "s": 5}', "wrong_type", "validate"),
]


@pytest.mark.parametrize(("line", "code", "stage"), BAD_LINES)
def test_a_bad_line_is_rejected_at_its_offset(read, write, line, code, stage):
    good = b'{"id": "1", "text": "a", "n": 1, "b": true, "f": 0.5, "p": "q", "s": "t"}'
    path = write(good, line, good, b"")
    config = {"partition_columns": ("p",), "carry_columns": ("n", "b", "f", "s")}
    corpus = read(path, id_column="id", **config)
    assert corpus.ids == ["1", "1"]
    assert corpus.documents["_offset"].to_pylist() == [0, len(good) + len(line) + 2]
    (row,) = corpus.rejected
    assert (row.source, row.offset, row.stage, row.code) == (
        str(path),
        len(good) + 1,
        stage,
        code,
    )


def test_byte_order_marks_returns_and_blank_lines_are_no_trouble(read, write):
    path = write(b'\xef\xbb\xbf{"text": "a"}\r', b"\r", b"  \t", b'{"text": "b"}')
    corpus = read(path)
    assert corpus.texts == ["a", "b"]
    assert corpus.rejected == []
    assert corpus.documents["_offset"].to_pylist() == [0, 24]


def test_nul_and_surrogate_pairs_are_text(read, write):
    corpus = read(write(b'{"text": "a\\u0000b \\ud83d\\udc4d"}'))
    assert corpus.texts == ["a\0b 👍"]


def test_of_a_repeated_key_the_last_value_counts(read, write):
    assert read(write(b'{"text": "a", "text": "b"}')).texts == ["b"]


def test_a_line_over_the_limit_is_rejected_and_the_next_is_read(read, write):
    long = json.dumps({"text": "x" * (SLACK + 4_000)}).encode()
    path = write(b'{"text": "a"}', long, b'{"text": "b"}', long)
    corpus = read(path, max_document_bytes=1_000)
    assert corpus.texts == ["a", "b"]
    assert corpus.codes == ["line_too_long"] * 2
    assert [row.offset for row in corpus.rejected] == [14, 14 + len(long) + 1 + 14]


def test_values_of_carried_keys_have_the_types_of_the_first_rows(read, write):
    rows = [
        {"text": "a", "i": 1, "f": 1, "b": True, "s": "x", "o": {"a": [1, "é"]}, "z": None},
        {"text": "b", "i": None, "f": 0.5, "b": None, "s": None, "o": "plain"},
        {"text": "c"},
    ]
    names = ("i", "f", "b", "s", "o", "z")
    corpus = read(write(*(json.dumps(row).encode() for row in rows)), carry_columns=names)
    assert [corpus.documents[name].type for name in names] == [
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
        pa.string(),
        pa.string(),
    ]
    found = [[row[name] for name in names] for row in corpus.documents.to_pylist()]
    assert found == [
        [1, 1.0, True, "x", '{"a":[1,"é"]}', None],
        [None, 0.5, None, None, "plain", None],
        [None] * 6,
    ]
    assert corpus.rejected == []


def test_the_type_of_most_first_rows_counts(read, write):
    lines = [b'{"text": "a", "n": %d}' % number for number in range(5)]
    corpus = read(write(b'{"text": "a", "n": "unknown"}', *lines), carry_columns=("n",))
    assert corpus.documents["n"].type == pa.int64()
    assert corpus.codes == ["wrong_type"]


def test_ids_and_partition_values_become_strings(read, write):
    path = write(b'{"id": 7, "text": "a", "p": true}', b'{"id": "7x", "text": "b", "p": 3}')
    corpus = read(path, id_column="id", partition_columns=("p",))
    assert corpus.ids == ["7", "7x"]
    assert corpus.documents["p"].to_pylist() == ["true", "3"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.jsonl.xz"])
def test_a_file_cut_in_the_middle_is_rejected_whole_or_an_error(read, tmp_path, name):
    import bz2
    import gzip

    compress = {
        "gz": gzip.compress,
        "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
        "bz2": bz2.compress,
        "xz": lzma.compress,
    }[name.rsplit(".", 1)[1]]
    lines = [json.dumps({"text": f"text {hash((n, 'x'))} {n}"}) for n in range(40_000)]
    packed = compress("\n".join(lines).encode())
    (tmp_path / name).write_bytes(packed[: -len(packed) // 4])
    (tmp_path / "good.jsonl").write_bytes(b'{"text": "good"}')
    with pytest.raises(SourceError, match="ends in the middle"):
        read(tmp_path)
    corpus = read(tmp_path, on_bad_file="reject")
    assert corpus.texts == ["good"]
    assert corpus.codes + [row.code for row in corpus.discovery.rejected] == ["truncated_file"]
    assert (corpus.rejected or corpus.discovery.rejected)[0].offset is None


@pytest.mark.shared
def test_real_news_is_read_with_its_labels(read, shared):
    corpus = read(
        shared / "data/bbc-news/bbc.jsonl.xz", id_column="id", partition_columns=("label",)
    )
    assert corpus.documents.num_rows == 2225
    assert len(set(corpus.ids)) == 2225
    assert corpus.rejected == []
    counts = {
        row["values"]: row["counts"] for row in corpus.documents["label"].value_counts().to_pylist()
    }
    assert sorted(counts.values()) == [386, 401, 417, 510, 511]
