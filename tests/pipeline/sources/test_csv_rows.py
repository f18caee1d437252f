"""CSV: quotes, headers, and rows of the wrong length."""

import pytest

from pipeline.errors import SourceError


@pytest.fixture
def write(tmp_path):
    def write(data, name="a.csv"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def test_quoted_fields_may_hold_anything(read, write):
    data = b'id,text\r\n1,"a, ""b""\r\nc"\r\n2,it\'s 5" long\r\n'
    corpus = read(write(data), id_column="id")
    assert corpus.texts == ['a, "b"\r\nc', "it's 5\" long"]
    assert corpus.documents["_offset"].to_pylist() == [0, 1]


def test_a_byte_order_mark_blank_lines_and_a_missing_last_newline_are_no_trouble(read, write):
    corpus = read(write(b"\xef\xbb\xbf\nid,text\n\n1,a\n\n2,b"), id_column="id")
    assert (corpus.ids, corpus.texts, corpus.rejected) == (["1", "2"], ["a", "b"], [])
    assert corpus.documents["_offset"].to_pylist() == [0, 1]


def test_an_empty_field_is_null(read, write):
    data = b"id,text,lang,extra\n1,a,,\n,b,en,x\n3,,en,x\n"
    config = {"partition_columns": ("lang",), "carry_columns": ("extra",)}
    corpus = read(write(data), id_column="id", **config)
    assert corpus.documents.select(["id", "lang", "extra"]).to_pylist() == [
        {"id": "1", "lang": None, "extra": None}
    ]
    assert corpus.codes == ["null_id", "null_text"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b"2", "bad_csv_row"),
        (b"2,b,c", "bad_csv_row"),
        (b'2,"b"c', "bad_csv_row"),
        (b"2,b\rc", "bad_csv_row"),
        (b"2,\xff", "not_utf8"),
        (b"\xff,b", "not_utf8"),
        (b"2," + b"x" * 200, "document_too_large"),
        (b"2," + b"x" * (2 << 20), "line_too_long"),
        (b'2,"' + b'x""\n' * (1 << 19) + b'"', "line_too_long"),
    ],
)
def test_a_bad_row_is_rejected_and_the_next_is_read(read, write, row, code):
    path = write(b"id,text\n1,a\n" + row + b"\n3,c\n")
    corpus = read(path, id_column="id", max_document_bytes=100)
    assert corpus.ids == ["1", "3"]
    (rejected,) = corpus.rejected
    assert (rejected.source, rejected.offset, rejected.code) == (str(path), 1, code)


@pytest.mark.parametrize("tail", [b'2,"never closed\n3,c\n', b'2,"' + b"never closed\n" * 200_000])
def test_a_quote_that_never_closes_makes_the_file_a_bad_one(read, write, tail):
    path = write(b"id,text\n1,a\n" + tail)
    with pytest.raises(SourceError, match=r"opened in row 1 .* never closes"):
        read(path, id_column="id", max_document_bytes=100)
    corpus = read(path, id_column="id", max_document_bytes=100, on_bad_file="reject")
    assert corpus.documents.num_rows == 0
    assert corpus.codes == ["corrupt_file"]


def test_an_unclosed_quote_costs_no_more_than_its_neighbour_where_fields_are_quoted(read, write):
    rows = b'"1","a"\n"2","b\n"3","c"\n"4","d"\n'
    corpus = read(write(b"id,text\n" + rows), id_column="id")
    assert corpus.ids == ["1", "4"]
    assert corpus.codes == ["bad_csv_row"]


def test_many_rows_come_in_batches(read, write):
    data = b"id,text\n" + b"".join(b'%d,"text\n%d"\n' % (n, n) for n in range(20_000))
    corpus = read(write(data), id_column="id")
    assert corpus.ids == [str(n) for n in range(20_000)]
    assert max(corpus.batch_rows) == 8192


def test_tabs_separate_the_fields_of_a_tsv(read, write):
    assert read(write(b"id\ttext\n1\ta,b\n", name="a.tsv")).texts == ["a,b"]


@pytest.mark.shared
def test_real_reviews_are_read_with_category_and_polarity(read, shared):
    path = shared / "data/zh-online-shopping/online_shopping_10_cats.csv.xz"
    config = {"text_columns": ("review",), "partition_columns": ("cat",)}
    corpus = read(path, **config, carry_columns=("label",))
    assert corpus.documents.num_rows + len(corpus.rejected) == 62_774
    assert set(corpus.codes) <= {"null_text", "no_tokens"}
    assert len(corpus.documents["cat"].unique()) == 10
    assert sorted(corpus.documents["label"].unique().to_pylist()) == ["0", "1"]
