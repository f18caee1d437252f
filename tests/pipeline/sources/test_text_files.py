"""Plain text, by line and by file."""

import gzip

import pytest

from pipeline.errors import SourceError


@pytest.fixture
def corpus_path(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n \ttwo \n\nthree")
    (tmp_path / "deep/b.txt.gz").write_bytes(gzip.compress("vi\u00e9r\n".encode()))
    return tmp_path


def test_a_line_is_a_document_and_blank_lines_are_none(read, corpus_path):
    corpus = read(corpus_path)
    assert corpus.texts == ["one", " \ttwo ", "three", "viér"]
    assert corpus.documents["_offset"].to_pylist() == [0, 10, 18, 0]
    assert corpus.rejected == []
    assert len(set(corpus.ids)) == 4


def test_a_file_is_a_document_and_its_path_can_be_its_id(read, corpus_path):
    corpus = read(corpus_path, text_unit="file", id_column="path", carry_columns=("path",))
    assert corpus.texts == ["one\r\n\r\n \ttwo \n\nthree", "viér\n"]
    assert corpus.ids == corpus.documents["path"].to_pylist() == ["a.txt", "deep/b.txt.gz"]
    single = read(corpus_path / "deep/b.txt.gz", text_unit="file", id_column="path")
    assert single.ids == ["b.txt.gz"]
    globbed = read(f"{corpus_path}/de*/*", text_unit="file", id_column="path")
    assert globbed.ids == ["deep/b.txt.gz"]


def test_splits_by_line_give_every_line_once(read, tmp_path):
    lines = [f"line {n} " + "é" * (n % 40) for n in range(500)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read(tmp_path, split_bytes=97).texts == lines


def test_lines_that_are_no_utf8_or_too_large_are_rejected(read, tmp_path):
    data = b"good\n\xff\xfebad\n" + b"x" * 300 + b"\n" + b"y" * (2 << 20) + b"\nlast"
    (tmp_path / "a.txt").write_bytes(data)
    corpus = read(tmp_path, max_document_bytes=100)
    assert corpus.texts == ["good", "last"]
    assert sorted(corpus.codes) == ["document_too_large", "line_too_long", "not_utf8"]


def test_a_file_that_is_too_large_or_empty_is_rejected(read, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 101)
    (tmp_path / "b.txt").write_bytes(b"x" * 100)
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"\xff")
    corpus = read(tmp_path, text_unit="file", max_document_bytes=100, id_column="path")
    assert corpus.ids == ["b.txt"]
    assert corpus.codes == ["document_too_large", "empty_text", "not_utf8"]


def test_only_text_and_path_are_columns(read, corpus_path):
    with pytest.raises(SourceError, match="found: text, path"):
        read(corpus_path, id_column="id")
