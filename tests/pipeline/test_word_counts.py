"""Tables of counts: the pure part of counting the words of a corpus."""

import random
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmo_model.vocabulary import MARKS, MAX_WORD_CHARACTERS, SKIPPED_LINE, Vocabulary
from pipeline import word_counts
from pipeline.errors import ConfigError
from pipeline.vocabulary_config import VocabularyLimits
from pipeline.word_counts import (
    COUNTS_SCHEMA,
    BucketTally,
    HeldCounts,
    finish_bucket,
    merge_counts,
    split_by_bucket,
    top_words,
)

ODD = [*MARKS, SKIPPED_LINE, "", "a b", " a", "a\t", "a\nb", "\r", "\x0b", "a\x0c", "\u00a0", "\0"]
ODD += ["\u2028", "\ufffd", "\U0001f600", "é", "e\u0301", "$", "^", "a\u0085", "-1"]
WORDS = st.one_of(
    st.sampled_from([*"abcdef", *ODD]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
TEXTS = st.lists(st.lists(WORDS, max_size=12), min_size=1, max_size=8)


def table(counts):
    columns = [list(counts), [int(count) for count in counts.values()]]
    return pa.table(columns, schema=COUNTS_SCHEMA)


def counted(counts):
    return dict(zip(*counts.to_pydict().values(), strict=True))


def held(*texts, max_bytes=1 << 20):
    counts = HeldCounts(max_bytes)
    for text in texts:
        counts.add(pa.chunked_array([pa.array(text, pa.string())]))
    return counts


@given(TEXTS, st.integers(1, 3), st.none() | st.integers(4, 12), st.integers(1, 5))
def test_the_result_is_that_of_a_plain_counter_however_the_text_is_divided(
    texts, min_count, max_size, num_buckets
):
    limits = VocabularyLimits(min_count=min_count, max_size=max_size)
    parts = [split_by_bucket(held(text).take(), num_buckets) for text in texts]
    finished = [finish_bucket(limits, *bucket) for bucket in zip(*parts, strict=True)]
    kept = top_words(limits.room, *(words for words, _ in finished))
    counts = Counter(word for text in texts for word in text)
    expected = Vocabulary.from_counts(counts, min_count, max_size)
    assert (*MARKS, *kept["word"].to_pylist()) == expected.words
    assert all(counts[word] == count for word, count in counted(kept).items())

    tally = sum((tally for _, tally in finished), BucketTally())
    everything = set(Vocabulary.from_counts(counts).words)
    faulty = counts.keys() - everything
    whole = Vocabulary.from_counts(counts, min_count).words[len(MARKS) :]
    assert tally == BucketTally(
        num_distinct=len(counts),
        num_kept=len(whole),
        kept_bytes=sum(len(word.encode()) + 1 for word in whole),
        num_faulty=len(faulty),
        num_faulty_tokens=sum(counts[word] for word in faulty),
        num_mark_tokens=sum(counts[mark] for mark in MARKS),
        max_count=max(counts.values(), default=0),
    )


@given(st.lists(st.dictionaries(WORDS, st.integers(1, 9), max_size=8), min_size=1, max_size=6))
def test_merging_adds_up_and_its_order_does_not_matter(parts):
    expected = sum(map(Counter, parts), Counter())
    merged = merge_counts(*map(table, parts))
    assert counted(merged) == expected
    assert merged.num_rows == len(expected)
    first, *rest = map(table, reversed(parts))
    for part in rest:
        first = merge_counts(first, part)
    assert counted(first) == expected


def test_counts_larger_than_32_bits_are_added_up():
    assert counted(merge_counts(table({"a": 1 << 40}), table({"a": 1 << 40}))) == {"a": 1 << 41}


@given(st.sets(WORDS), st.integers(1, 9))
def test_a_word_is_always_in_the_same_bucket(words, num_buckets):
    buckets = split_by_bucket(table(dict.fromkeys(words, 1)), num_buckets)
    assert len(buckets) == num_buckets
    assert sorted(word for bucket in buckets for word in counted(bucket)) == sorted(words)
    for word in words:
        alone = split_by_bucket(table({word: 1}), num_buckets)
        place = [bucket.num_rows for bucket in alone].index(1)
        assert word in counted(buckets[place])


def test_a_buckets_table_carries_no_other_bucket_along():
    words = {f"word{number}": 1 for number in range(10_000)}
    for bucket in split_by_bucket(table(words), 100):
        assert sum(buffer.size for buffer in buffers(bucket)) < 20_000


def test_the_buckets_do_not_depend_on_how_many_words_are_hashed_at_once(monkeypatch):
    words = table({f"word{number}": 1 for number in range(1_000)})
    expected = split_by_bucket(words, 7)
    monkeypatch.setattr(word_counts, "HASHED_ROWS", 13)
    assert split_by_bucket(words, 7) == expected


def buffers(counts):
    return [
        buffer
        for column in counts.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None
    ]


def test_words_of_equal_count_are_in_the_order_of_code_points():
    words = ["z", "Z", "é", "e\u0301", "\U0001f600", "\uffff", "a", "aa", "10", "9"]
    random.Random(0).shuffle(words)
    kept = top_words(None, table(dict.fromkeys(words, 2) | {"last": 1, "first": 3}))
    assert kept["word"].to_pylist() == ["first", *sorted(words), "last"]
    # U+FFFF is before U+1F600, which it would not be in UTF-16.
    assert top_words(3, table(dict.fromkeys(words, 2)))["word"].to_pylist() == sorted(words)[:3]


def test_a_tie_at_the_limit_is_cut_by_code_point_whichever_bucket_the_words_are_in():
    parts = [table({"d": 5, "b": 1}), table({"c": 1, "e": 5}), table({"a": 1})]
    for order in (parts, parts[::-1]):
        assert top_words(3, *order)["word"].to_pylist() == ["d", "e", "a"]


def test_a_word_of_the_greatest_length_is_kept_and_a_longer_one_is_counted_as_faulty():
    longest, longer = "é" * MAX_WORD_CHARACTERS, "é" * (MAX_WORD_CHARACTERS + 1)
    limits = VocabularyLimits(min_count=1)
    kept, tally = finish_bucket(limits, table({longest: 1, longer: 4}))
    assert kept["word"].to_pylist() == [longest]
    assert (tally.num_faulty, tally.num_faulty_tokens) == (1, 4)


def test_text_that_repeats_itself_is_held_without_end():
    counts = HeldCounts(max_bytes=1_000)
    text = pa.chunked_array([pa.array([f"w{number % 20}" for number in range(100)])])
    assert not any(counts.add(text) for _ in range(100))
    assert counted(counts.take()) == {f"w{number}": 500 for number in range(20)}
    assert counts.take().num_rows == 0


def test_what_is_held_is_bounded_and_nothing_of_it_is_lost():
    counts = HeldCounts(max_bytes=10_000)
    taken = []
    for first in range(0, 5_000, 50):
        words = [f"w{number}" for number in range(first, first + 50)]
        if counts.add(pa.chunked_array([pa.array(words)])):
            taken.append(counts.take())
            assert taken[-1].nbytes < 10_000 + 50 * 20
    assert len(taken) > 5
    merged = counted(merge_counts(*taken, counts.take()))
    assert merged == {f"w{number}": 1 for number in range(5_000)}


def test_a_bucket_that_is_too_large_to_merge_says_which_setting_divides_it(monkeypatch):
    monkeypatch.setattr(word_counts, "MAX_MERGED_BYTES", 100)
    with pytest.raises(ConfigError, match=r"run\.num_buckets: the words of one bucket take"):
        merge_counts(table({f"word{number}": 1 for number in range(100)}))


@pytest.mark.parametrize("max_size", [-1, 0, 3])
def test_a_limit_without_room_beside_the_marks_is_refused(max_size):
    with pytest.raises(ValueError, match="<S>, </S>, <UNK>: allow at least 4"):
        VocabularyLimits(max_size=max_size)
