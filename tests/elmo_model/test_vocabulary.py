"""The vocabulary file and the words in it."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.errors import ModelFileError
from elmo_model.vocabulary import MARKS, SKIPPED_LINE, Vocabulary, count_words


def test_the_reference_vocabulary_is_read_in_the_order_of_its_lines(shared):
    vocabulary = Vocabulary.read(shared / "golden/bilm-tf-train/vocab.txt")
    assert len(vocabulary) == 32
    assert vocabulary.words[:5] == ("<S>", "</S>", "<UNK>", "of", "the")
    assert (vocabulary.begin_id, vocabulary.end_id, vocabulary.unknown_id) == (0, 1, 2)


def test_the_marks_may_stand_anywhere(shared):
    vocabulary = Vocabulary.read(shared / "golden/bilm-tf-data/vocab_test.txt")
    assert (vocabulary.begin_id, vocabulary.end_id, vocabulary.unknown_id) == (1, 0, 2)


def test_a_written_vocabulary_reads_back_equal(tmp_path):
    vocabulary = Vocabulary([*MARKS, "naïve", "\u00a0", "a\u3000b", "中"])
    vocabulary.write(tmp_path / "vocabulary.txt")
    assert Vocabulary.read(tmp_path / "vocabulary.txt") == vocabulary


words_of_any_kind = st.lists(st.text(max_size=5), max_size=20)


@given(words_of_any_kind)
def test_every_counted_vocabulary_survives_its_file(words):
    vocabulary = Vocabulary.from_counts(count_words([words]))
    assert Vocabulary.from_bytes(vocabulary.to_bytes(), "file") == vocabulary


def test_only_ascii_whitespace_is_stripped_and_only_newlines_end_lines():
    content = "<S>\r\n</S>\t\n <UNK>\n\u00a0\na\u2028b\nc\x85".encode()
    assert Vocabulary.from_bytes(content, "file").words[3:] == ("\u00a0", "a\u2028b", "c\x85")


def test_the_line_maxtermid_takes_no_id():
    content = f"<S>\n</S>\n{SKIPPED_LINE}\n<UNK>\nthe\n".encode()
    assert Vocabulary.from_bytes(content, "file").id_of("the") == 3


@pytest.mark.parametrize("mark", MARKS)
def test_a_missing_mark_is_an_error_that_names_it(mark, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in (*MARKS, "the") if word != mark))
    with pytest.raises(ModelFileError, match=rf"vocab\.txt: {mark} missing among 3 words"):
        Vocabulary.read(path)


def test_a_word_that_occurs_twice_is_an_error_that_names_both_places():
    with pytest.raises(ModelFileError, match="'the' is both word 3 and word 5"):
        Vocabulary([*MARKS, "the", "of", "the"])


def test_an_empty_line_is_an_error_that_names_its_place():
    with pytest.raises(ModelFileError, match="file: word 3, '', is empty"):
        Vocabulary.from_bytes(b"<S>\n</S>\n<UNK>\n\nthe\n", "file")


@pytest.mark.parametrize("word", ["", "a\nb", "a\rb", " a", "a\t", "\ud800", SKIPPED_LINE])
def test_a_word_that_no_file_can_hold_is_refused(word):
    with pytest.raises(ModelFileError, match="remove it"):
        Vocabulary([*MARKS, word])


def test_bytes_that_are_not_utf8_are_an_error_with_their_place():
    with pytest.raises(ModelFileError, match="byte 4 is not UTF-8"):
        Vocabulary.from_bytes(b"<S>\n\xff\n", "file")


def test_words_outside_the_vocabulary_have_the_id_of_unk():
    vocabulary = Vocabulary([*MARKS, "the"])
    assert vocabulary.ids_of(["the", "zebra", "</S>"]).tolist() == [3, 2, 1]
    assert "the" in vocabulary
    assert "zebra" not in vocabulary


def test_counted_words_come_by_falling_count_then_by_code_point():
    sentences = [["b", "a", "c"], ["c", "a", "b"], ["c", "d"]]
    vocabulary = Vocabulary.from_counts(count_words(sentences))
    assert vocabulary.words == (*MARKS, "c", "a", "b", "d")


def test_the_order_of_the_text_does_not_change_the_vocabulary():
    sentences = [["b", "a"], ["c", "a"], ["c", "d"]]
    vocabularies = {
        Vocabulary.from_counts(count_words(order), max_size=6) for order in permutations(sentences)
    }
    assert len(vocabularies) == 1


def test_rare_words_and_words_beyond_the_size_are_left_out():
    counts = {"the": 9, "of": 5, "zebra": 1}
    assert Vocabulary.from_counts(counts, min_count=2).words == (*MARKS, "the", "of")
    assert Vocabulary.from_counts(counts, max_size=4).words == (*MARKS, "the")


def test_marks_in_the_text_are_not_counted_again():
    counts = count_words([["<UNK>", "<S>", "the", SKIPPED_LINE]])
    assert Vocabulary.from_counts(counts).words == (*MARKS, "the")


def test_a_size_without_room_for_words_is_refused():
    with pytest.raises(ValueError, match="allow at least 4"):
        Vocabulary.from_counts({"the": 1}, max_size=3)
