"""Keeping words' vectors between batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.word_cache import WordCache


def embed_counting(calls):
    def embed(words):
        calls.append(list(words))
        return torch.tensor([[float(word), 1.0] for word in words]).reshape(-1, 2)

    return embed


@given(batches=st.lists(st.lists(st.integers(0, 30).map(str), max_size=12), max_size=10))
def test_vectors_are_those_of_the_words_whatever_was_kept(batches):
    cache = WordCache(embed_counting([]), max_words=10)
    for words in batches:
        assert cache.vectors(words)[:, 0].tolist() == [float(word) for word in words]
        assert len(cache) <= 10


def test_a_kept_word_is_not_made_again():
    calls = []
    cache = WordCache(embed_counting(calls), max_words=10)
    cache.vectors(["1", "2"])
    cache.vectors(["2", "3", "1"])
    assert calls == [["1", "2"], ["3"]]


def test_when_the_room_is_used_up_the_words_at_hand_are_kept():
    calls = []
    cache = WordCache(embed_counting(calls), max_words=3)
    cache.vectors(["1", "2"])
    cache.vectors(["2", "3", "4"])
    cache.vectors(["2", "3", "4"])
    assert calls == [["1", "2"], ["2", "3", "4"]]


def test_the_table_grows_and_keeps_what_it_holds():
    cache = WordCache(embed_counting([]), max_words=10_000)
    first = [str(n) for n in range(1500)]
    cache.vectors(first)
    cache.vectors([str(n) for n in range(1500, 6000)])
    assert cache.vectors(first)[:, 0].tolist() == [float(word) for word in first]
