"""Damaged files of word vectors, and files made to fill the memory, are refused by place."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from elmo_model.errors import ModelFileError
from elmo_model.vocabulary import MARKS, Vocabulary
from elmo_model.word_vector_files import MAX_LINE_BYTES, MAX_WIDTH, MAX_WORD_BYTES
from elmo_model.word_vectors import read_word_vectors
from tests.elmo_model.word_vector_bytes import random_vectors, word2vec_binary, word2vec_text

VOCABULARY = Vocabulary([*MARKS, "the", "of"])
VECTORS = random_vectors(["the", "zebra", "of"], 4)
TEXT = word2vec_text(VECTORS)
BINARY = word2vec_binary(VECTORS)
# Blocks, one line and what gzip needs; far below what the files claim or unpack to.
MAX_EXTRA_BYTES = 12 << 20


def fails(path, content, message, **arguments):
    file = path / "vectors.bin"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_word_vectors(file, VOCABULARY, **arguments)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected word vectors"),
        (gzip.compress(b""), "is empty"),
        (b"\n", "expected word vectors .* but line 1 is ''"),
        (b"hello world\n", "expected word vectors .* but line 1 is 'hello world'"),
        (b"\x00\x01\x02", "expected word vectors"),
        (b"PK\x03\x04\x14\0", "a zip archive; unpack it"),
        (b"\xba\x16\x4f\x2f\x0c\0\0\0", r"fastText's own format; use the \.vec file"),
        (b"\x80\x04\x95", "a pickle, which is not opened"),
        (b"<!DOCTYPE html>\n", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_holds_no_vectors_is_refused_with_what_it_is(tmp_path, content, message):
    fails(tmp_path, content, message)


def test_a_file_that_is_missing_or_a_folder_is_an_error_that_names_it(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ModelFileError, match=rf"{path}: cannot be read"):
            read_word_vectors(path, VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2 3\nthe 1 2 3\nof 1 2\n", "line 3, word 'of': expected 3 numbers, found 2 fields"),
        (b"2 3\nthe 1 2 3\nzebra 1 2\n", "line 3, word 'zebra': expected 3 numbers"),
        (b"the 1 2 3\nof 1 2\nzebra 1 2 3\n", "line 2, word 'of': expected 3 numbers"),
        (b"2 2\nthe 1 2\nof 1.0001 2.5 3.5\n", "line 3, word 'of': expected 2 numbers, found 3"),
        (b"the 1 2\n\nof 1 2\n", "line 2 is empty"),
        (b"1 3\nthe 1 2x 3\n", "line 2, word 'the': expected 3 numbers, found '1 2x 3'"),
        (b"1 3\nthe 1 2 3x\n", "line 2, word 'the': expected 3 numbers, found '1 2 3x'"),
        (b"1 3\nthe 1  3\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1 2 0x3\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1 2,5 3\n", "line 2, word 'the': expected 3 numbers"),
        (b"2 3\nof 1 2 3\nthe 1 2 3\0\n", "line 3, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0 2.0.0 3\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0 -2.-0 3.0\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0 . 3.0\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0 2.0 0x3.0\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0 2.0 3.0f\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1.0  3.0\n", "line 2, word 'the': expected 3 numbers"),
        (b"1 3\nthe 1 nan 3\n", "line 2, word 'the': holds numbers that are not finite"),
        (b"1 3\nthe 1 -inf 3\n", "line 2, word 'the': .* not finite"),
        (b"1 3\nthe 1 1e39 3\n", "line 2, word 'the': .* not finite"),
    ],
)
def test_a_wrong_row_is_named_by_its_line_and_word(tmp_path, content, message):
    fails(tmp_path, content, message)
    fails(tmp_path, gzip.compress(content), message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_binary_vector_that_is_not_finite_is_named_by_its_byte(tmp_path, value):
    content = word2vec_binary({"zebra": [1, 2], "the": [value, 2]})
    fails(tmp_path, content, r"byte 18, word 'the': holds numbers that are not finite")


def test_numbers_of_words_that_are_not_wanted_are_not_read(tmp_path):
    (tmp_path / "v").write_bytes(b"the 1 2 3\nzebra nan nan nan\nof 1 2 3\n")
    assert read_word_vectors(tmp_path / "v", VOCABULARY).num_found == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.replace(b"3 4", b"4 4"), "declares 4 words, but the file ends after 3"),
        (TEXT.replace(b"3 4", b"2 4"), "line 1 declares 2 words, line 4 is one more"),
        (TEXT.replace(b"3 4", b"3 5"), "expected 5 numbers, found 4"),
        (TEXT.replace(b"3 4", b"3 3"), "line 2, word 'the': expected 3 numbers"),
        (b"3 4\n", "declares 3 words, but the file ends after 0"),
        (b"0 4\n", "line 1 declares 0 words"),
        (b"3 0\nthe\n", "declares 3 words with 0 numbers"),
        (BINARY.replace(b"3 4", b"4 4"), "declares 4 words, but the file ends in row 4"),
        (BINARY.replace(b"3 4", b"2 4"), "declares 2 words, but more follow at byte"),
        (BINARY[:-10], "the file ends in row 3, which starts at byte .* cut off"),
        (BINARY[:30], "ends in row 2, which starts at byte 24: .* found 6 bytes"),
    ],
)
def test_a_header_that_lies_and_a_file_that_is_cut_off_are_errors(tmp_path, content, message):
    fails(tmp_path, content, message)
    fails(tmp_path, gzip.compress(content), message)


@pytest.mark.parametrize("content", [TEXT, BINARY])
def test_every_cut_of_a_file_is_an_error_or_leaves_only_a_shorter_last_number(tmp_path, content):
    path = tmp_path / "v"
    last = content.rindex(b" ", 0, len(content.rstrip(b" \n"))) if content is TEXT else None
    for size in range(len(content) - 1 if last is None else last):
        path.write_bytes(content[:size])
        with pytest.raises(ModelFileError, match=r"/v: "):
            read_word_vectors(path, VOCABULARY)


@pytest.mark.parametrize("damage", ["cut off", "changed", "bytes after it"])
def test_damaged_gzip_is_an_error_that_names_the_file(tmp_path, damage):
    packed = gzip.compress(word2vec_text(random_vectors(["the", *map(str, range(500))], 4)))
    content = {
        "cut off": packed[:-20],
        "changed": packed[:-6] + b"\xff" + packed[-5:],
        "bytes after it": packed + b"more",
    }[damage]
    fails(tmp_path, content, "damaged gzip .*; copy or fetch the file again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 8}, "vectors of 4 numbers, the model's words have 8: set lstm.projection_dim"),
        ({"file_format": "glove"}, "line 2, word 'the': expected 1 numbers|line 1"),
        ({"file_format": "csv"}, "no format 'csv'; the formats are word2vec, word2vec-binary"),
    ],
)
def test_what_does_not_fit_the_arguments_is_an_error_that_says_what_to_set(
    tmp_path, arguments, message
):
    fails(tmp_path, TEXT, message, **arguments)


@pytest.mark.parametrize("file_format", ["word2vec", "word2vec-binary"])
def test_a_file_without_a_header_cannot_be_of_a_format_that_has_one(tmp_path, file_format):
    message = "line 1: expected the number of words and the width, found 'the 1 2'"
    fails(tmp_path, b"the 1 2\n", message, file_format=file_format)


def test_a_file_without_any_word_of_the_vocabulary_is_an_error_with_examples(tmp_path):
    content = b"The 1 2\nOf 3 4\nThe 1 2\nX 1 2\n"
    fails(tmp_path, content, "none of its 4 words is among the 5 .* begins with 'The', 'Of', 'The'")


def peak_bytes(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"999999999999999999 4\n", "declares 999999999999999999 words"),
        (b"3 999999999999999999\n", f"with 999999999999999999 numbers each; .* 1 to {MAX_WIDTH}"),
    ],
)
@pytest.mark.parametrize("rows", [TEXT[4:], BINARY[4:]], ids=["text", "binary"])
def test_a_header_that_declares_absurd_counts_allocates_nothing(tmp_path, header, message, rows):
    assert peak_bytes(lambda: fails(tmp_path, header + rows, message)) < MAX_EXTRA_BYTES


@pytest.mark.parametrize(
    ("start", "filling", "message"),
    [
        (b"", b"a", f"line 1 is longer than {MAX_LINE_BYTES} bytes"),
        (b"the 1 2 3\n", b"a", f"line 2 is longer than {MAX_LINE_BYTES} bytes"),
        (b"the 1 2 3\n", b"0 ", f"line 2 is longer than {MAX_LINE_BYTES} bytes"),
        (b"9 3\nthe 1 2 3\n", b"a", f"line 3 is longer than {MAX_LINE_BYTES} bytes"),
        (b"9 3\nthe " + bytes(12), b"a", f"byte 20: a word longer than {MAX_WORD_BYTES} bytes"),
        (b"9 3\n", b"\0", f"byte 4: a word longer than {MAX_WORD_BYTES} bytes"),
    ],
)
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, start, filling, message):
    packed = gzip.compress(start + filling * (64 << 20), compresslevel=1)
    assert len(packed) < 1 << 20
    assert peak_bytes(lambda: fails(tmp_path, packed, message)) < MAX_EXTRA_BYTES


def test_a_word_of_the_text_that_is_too_long_is_refused(tmp_path):
    content = b"the 1 2\n" + b"a" * (MAX_WORD_BYTES + 1) + b" 1 2\n"
    fails(tmp_path, content, f"line 2: a word longer than {MAX_WORD_BYTES} bytes")


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_memory_is_bounded_by_the_vocabulary_and_not_by_the_file(tmp_path, kind):
    num_rows, width = 20_000, 300
    path = tmp_path / "vectors.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{num_rows} {width}\n".encode())
        values = b"0.125 " * width if kind == "text" else struct.pack("<f", 0.125) * width
        for number in range(num_rows - 1):
            file.write(b"word%d " % number + values + b"\n")
        file.write(b"the " + values + b"\n")
    found = []
    peak = peak_bytes(lambda: found.append(read_word_vectors(path, VOCABULARY, width)))
    assert peak < MAX_EXTRA_BYTES
    assert num_rows * width * 4 > MAX_EXTRA_BYTES
    assert (found[0].num_found, found[0].num_rows) == (1, num_rows)
    assert (found[0].vectors_VP[3] == 0.125).all()
