"""Word vectors in the formats of word2vec and GloVe, read for the words of a vocabulary."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.vocabulary import MARKS, Vocabulary
from elmo_model.word_vector_files import opened_word_vectors
from elmo_model.word_vectors import read_word_vectors
from tests.elmo_model.word_vector_bytes import (
    glove_text,
    random_vectors,
    word2vec_binary,
    word2vec_text,
)

WIDTH = 5
IN_FILE = ["the", ",", "of", "zebra", "über", "中文", "New_York", "a\u00a0b"]
VECTORS = random_vectors(IN_FILE, WIDTH)
VOCABULARY = Vocabulary([*MARKS, "of", "中文", "absent", "the", "über", "a\u00a0b"])
FOUND = ["of", "中文", "the", "über", "a\u00a0b"]

FILES = {
    "word2vec": word2vec_text(VECTORS),
    "word2vec-binary": word2vec_binary(VECTORS),
    "word2vec-binary without newlines": word2vec_binary(VECTORS, newline=b""),
    "glove": glove_text(VECTORS),
}


def read(path, content, vocabulary=VOCABULARY, **arguments):
    path = path / "vectors"
    path.write_bytes(content)
    return read_word_vectors(path, vocabulary, **arguments)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_every_format_is_told_by_its_content_and_gives_the_same_vectors(tmp_path, name, compress):
    found = read(tmp_path, compress(FILES[name]), width=WIDTH)
    assert found.vectors_VP.shape == (len(VOCABULARY), WIDTH)
    assert found.vectors_VP.dtype == np.float32
    for row, word in enumerate(VOCABULARY.words):
        assert found.found_V[row] == (word in FOUND)
        expected = VECTORS[word] if word in FOUND else np.zeros(WIDTH)
        assert np.array_equal(found.vectors_VP[row], expected)
    assert (found.num_found, found.num_rows) == (len(FOUND), len(IN_FILE))
    assert found.num_duplicates == found.num_not_utf8 == found.num_lowercased == 0


@pytest.mark.parametrize("name", FILES)
def test_the_format_may_be_given(tmp_path, name):
    file_format = name.split(" ")[0]
    found = read(tmp_path, FILES[name], file_format=file_format)
    assert found.num_found == len(FOUND)
    with opened_word_vectors(tmp_path / "vectors") as file:
        assert (file.format, file.width) == (file_format, WIDTH)


@pytest.mark.parametrize("name", FILES)
def test_only_the_marks_own_spelling_counts(tmp_path, name):
    vectors = random_vectors(["</s>", "<unk>", "unk", "<s>", "<UNK>", "the"], WIDTH)
    writer = {"glove": glove_text, "word2vec": word2vec_text}.get(name, word2vec_binary)
    found = read(tmp_path, writer(vectors))
    assert found.found_V.tolist()[:3] == [False, False, True]
    assert np.array_equal(found.vectors_VP[VOCABULARY.unknown_id], vectors["<UNK>"])


def test_words_with_blanks_are_read_from_the_right(tmp_path):
    vocabulary = Vocabulary([*MARKS, ". . .", "Windows 3.1", "at name@domain.com", "to"])
    vectors = random_vectors(["to", "of", *vocabulary.words[3:6]], WIDTH)
    for content in (glove_text(vectors), word2vec_text(vectors)):
        found = read(tmp_path, content, vocabulary)
        for row, word in enumerate(vocabulary.words[3:], 3):
            assert np.array_equal(found.vectors_VP[row], vectors[word])


def test_a_first_word_with_blanks_does_not_change_the_width(tmp_path):
    vectors = random_vectors([". 5 6", "7", "the", "of"], WIDTH)
    assert read(tmp_path, glove_text(vectors)).vectors_VP.shape[1] == WIDTH


@pytest.mark.parametrize(
    "content",
    [
        b"the\t1\t2.5\t-3\n",
        b"the  1   2.5 -3\n",
        b"the 1 2.5 -3\r\n",
        b"the 1 2.5 -3 \t\n",
        b"the 1 2.5 -3",
        b"the 1 2.5 -3\n\n\n",
        b"\xef\xbb\xbfthe 1 2.5 -3\n",
        b"the +1.0 25e-1 -3E0\n",
        b"1 3\nthe 1 2.5 -3\n",
        b"1 3\r\nthe 1 2.5 -3\r\n",
        b"\xef\xbb\xbf 1\t3 \nthe 1 2.5 -3\n",
    ],
)
def test_blanks_and_line_ends_may_be_of_any_kind(tmp_path, content):
    found = read(tmp_path, content, width=3)
    assert found.vectors_VP[VOCABULARY.id_of("the")].tolist() == [1, 2.5, -3]


def test_numbers_are_read_as_float32_of_their_decimals(tmp_path):
    texts = ["0.1", "-0.082752", "1e-45", "3.4028234e38", "16777217", "-0.0", ".5", "7."]
    found = read(tmp_path, f"the {' '.join(texts)}\n".encode())
    expected = np.array([float(text) for text in texts]).astype(np.float32)
    assert np.array_equal(found.vectors_VP[VOCABULARY.id_of("the")], expected)


@pytest.mark.parametrize("name", ["glove", "word2vec", "word2vec-binary"])
def test_of_two_rows_of_a_word_the_first_counts(tmp_path, name):
    first, second, third = (random_vectors(["the"], WIDTH, seed) for seed in range(3))
    writer = {"glove": glove_text, "word2vec": word2vec_text}.get(name, word2vec_binary)
    rows = [writer(vectors).partition(b"\n") for vectors in (first, second, third)]
    if name == "glove":
        content = b"".join(row for row, _, _ in rows for row in (row + b"\n",))
    else:
        content = b"3 5\n" + b"".join(row for _, _, row in rows)
    found = read(tmp_path, content)
    assert np.array_equal(found.vectors_VP[VOCABULARY.id_of("the")], first["the"])
    assert (found.num_found, found.num_duplicates, found.num_rows) == (1, 2, 3)


@pytest.mark.parametrize("writer", [word2vec_binary, None])
def test_words_that_are_not_utf8_are_left_out_and_counted(tmp_path, writer):
    content = b"the 1 2\n\xff\xfe 3 4\ncaf\xe9 5 6\n"
    if writer:
        content = writer({"the": [1, 2], b"\xff\xfe": [3, 4], b"caf\xe9": [5, 6]})
    found = read(tmp_path, content)
    assert (found.num_found, found.num_not_utf8, found.num_rows) == (1, 2, 3)


def test_case_matters_unless_the_fallback_is_asked_for(tmp_path):
    vocabulary = Vocabulary([*MARKS, "The", "the", "THE", "Of", "Über", "ZEBRA"])
    vectors = random_vectors(["über", "the", "<unk>", "of", "Of"], WIDTH)
    exact = read(tmp_path, glove_text(vectors), vocabulary)
    assert [vocabulary.words[row] for row in np.flatnonzero(exact.found_V)] == ["the", "Of"]
    found = read(tmp_path, glove_text(vectors), vocabulary, lowercase_fallback=True)
    expected = {
        "<UNK>": "<unk>",
        "The": "the",
        "the": "the",
        "THE": "the",
        "Of": "Of",
        "Über": "über",
    }
    rows = np.flatnonzero(found.found_V)
    assert [vocabulary.words[row] for row in rows] == list(expected)
    for row, source in zip(rows, expected.values(), strict=True):
        assert np.array_equal(found.vectors_VP[row], vectors[source])
    assert found.num_lowercased == 4


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
decimals = st.one_of(
    st.decimals(-99, 99, allow_nan=False, places=6).map(str),
    st.decimals(-99, 99, allow_nan=False).map(lambda number: f"{number:f}"),
    floats.map(repr),
    st.sampled_from(["-.5", "7.", "+1.25", "-0.0", "00012.50", "999999999.999999", "16777217.0"]),
)


@given(st.lists(decimals, min_size=1, max_size=20))
def test_every_spelling_of_numbers_gives_what_float_gives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("vectors")
    expected = np.array([float(text) for text in texts]).astype(np.float32)
    found = read(folder, f"the {' '.join(texts)}\n".encode(), file_format="glove")
    assert np.array_equal(found.vectors_VP[VOCABULARY.id_of("the")], expected)


# A byte order mark is no part of a word at the start of a file.
SEPARATORS = " \t\n\r\x0b\x0c\ufeff"
words = st.text(st.characters(codec="utf-8", exclude_characters=SEPARATORS), min_size=1)


@st.composite
def tables(draw):
    """A vocabulary's words, each with a vector of one width."""
    chosen = draw(st.lists(words.filter(lambda word: word not in MARKS), min_size=1, unique=True))
    width = draw(st.integers(1, 6))
    return {
        word: np.array(draw(st.lists(floats, min_size=width, max_size=width)), np.float32)
        for word in chosen
    }


def with_all_digits(vectors, header):
    rows = [" ".join([word, *map(repr, row.tolist())]) for word, row in vectors.items()]
    return "\n".join([*header, *rows]).encode()


@given(tables())
def test_every_table_survives_every_format(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("vectors")
    width = len(next(iter(vectors.values())))
    vocabulary = Vocabulary([*MARKS, *(word for word in vectors if word != "!!!MAXTERMID")])
    if len(vocabulary) == len(MARKS):
        return
    for file_format, content in {
        "word2vec": with_all_digits(vectors, [f"{len(vectors)} {width}"]),
        "word2vec-binary": word2vec_binary(vectors),
        "glove": with_all_digits(vectors, []),
    }.items():
        for packed in (content, gzip.compress(content)):
            found = read(folder, packed, vocabulary, file_format=file_format)
            assert found.found_V.tolist() == [False] * 3 + [True] * (len(vocabulary) - 3)
            for row, word in enumerate(vocabulary.words[3:], 3):
                assert np.array_equal(found.vectors_VP[row], vectors[word])


@pytest.mark.parametrize("start", [b"A\n", b" 5\n", b"5.5\n", b"\n\n"])
def test_a_newline_within_a_binary_number_does_not_make_it_text(tmp_path, start):
    numbers = np.frombuffer(start.ljust(4, b"\x3f") + b"\0\0\x80\x3f" * 7, "<f4")
    found = read(tmp_path, word2vec_binary({"the": numbers}))
    assert np.array_equal(found.vectors_VP[VOCABULARY.id_of("the")], numbers)


@given(tables(), st.integers(0, 2**32 - 1))
def test_formats_are_told_apart_for_words_of_any_kind(tmp_path_factory, vectors, seed):
    folder = tmp_path_factory.mktemp("vectors")
    # Widths and numbers as in real files; a single number may look like anything.
    vectors = random_vectors(list(vectors), 16, seed)
    for name, content in {
        "word2vec": word2vec_text(vectors),
        "word2vec-binary": word2vec_binary(vectors),
        "glove": glove_text(vectors),
    }.items():
        (folder / "vectors").write_bytes(content)
        with opened_word_vectors(folder / "vectors") as file:
            assert (file.format, file.width) == (name, 16)
            assert len(list(file.rows)) == len(vectors)
