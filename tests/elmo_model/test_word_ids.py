"""Numbers of stored words."""

import pytest

from elmo_model.errors import VocabularyError
from elmo_model.word_ids import WordIds, read_words


def test_words_have_the_number_of_their_line_and_others_that_of_unknown():
    ids = WordIds(["<S>", "</S>", "<UNK>", "a"])
    assert ids.of(["a", "b", "<S>"]).tolist() == [3, 2, 0]
    assert ids.of([]).tolist() == []


def test_without_unknown_a_word_that_is_not_listed_is_an_error():
    ids = WordIds(["<S>", "</S>", "a"])
    assert ids.of(["a"]).tolist() == [2]
    with pytest.raises(VocabularyError, match="'b' is not listed and <UNK> is not either"):
        ids.of(["a", "b"])


def test_the_sentence_marks_are_needed():
    with pytest.raises(VocabularyError, match="</S> missing among 2 words"):
        WordIds(["<S>", "a"])


def test_lines_are_read_as_the_original_reads_them(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_bytes("<S>\n a\t\r\n!!!MAXTERMID\nx\u00a0y\n".encode())
    assert read_words(path) == ("<S>", "a", "x\u00a0y")


def test_a_file_that_is_not_utf8_or_not_there_is_named(tmp_path):
    path = tmp_path / "vocabulary.txt"
    with pytest.raises(VocabularyError, match="vocabulary.txt: cannot be read"):
        read_words(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(VocabularyError, match="byte 2 is not UTF-8"):
        read_words(path)
