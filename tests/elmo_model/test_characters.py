"""Words to character ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.characters import CharacterEncoder
from tests.elmo_model.reference import char_ids

# Every code point, lone surrogates too, and the marks.
WORDS = st.lists(
    st.one_of(
        st.text(st.characters(), max_size=70),
        st.sampled_from(["<S>", "</S>", "<s>", "", "🙂" * 30, "é" * 25, "\x00", "\ud800"]),
    ),
    max_size=20,
)


@given(words=WORDS, width=st.integers(3, 60))
def test_ids_are_those_of_a_word_by_word_spelling(words, width):
    expected = [char_ids(word, width) for word in words]
    found = CharacterEncoder(width, shifted=False).encode(words)
    assert found.shape == (len(words), width)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    assert np.array_equal(CharacterEncoder(width).encode(words), found + 1)


def test_a_long_word_is_cut_inside_a_character():
    ids = CharacterEncoder(5, shifted=False).encode(["ĀĀ"])
    assert ids.tolist() == [[258, 196, 128, 196, 259]]


def test_lone_surrogates_vanish():
    spell = CharacterEncoder(10)
    assert np.array_equal(spell.encode(["a\ud800b"]), spell.encode(["ab"]))
    assert np.array_equal(spell.encode(["\udfff"]), spell.encode([""]))


def test_added_tokens_have_an_id_of_their_own():
    spell = CharacterEncoder(6, shifted=False, tokens_to_add={"[SEP]": 7, "<S>": 3})
    assert spell.encode(["[SEP]", "<S>", "</S>"]).tolist() == [
        [258, 7, 259, 260, 260, 260],
        [258, 3, 259, 260, 260, 260],
        [258, 257, 259, 260, 260, 260],
    ]


@pytest.mark.parametrize("char_id", [-1, 261])
def test_an_added_token_out_of_range_is_refused(char_id):
    with pytest.raises(ValueError, match=r"must be 0\.\.260"):
        CharacterEncoder(tokens_to_add={"x": char_id})


def test_a_width_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        CharacterEncoder(2)


def test_sentences_are_padded_with_zero_rows():
    spell = CharacterEncoder(7)
    ids = spell.encode_sentences([["ab", "c"], [], ["d"]])
    assert ids.shape == (3, 2, 7)
    assert np.array_equal(ids[0], spell.encode(["ab", "c"]))
    assert not ids[1].any()
    assert np.array_equal(ids[2, 0], spell.encode(["d"])[0])
    assert not ids[2, 1].any()
    assert spell.encode_sentences([]).shape == (0, 0, 7)
    assert spell.encode_sentences([[]]).shape == (1, 0, 7)
