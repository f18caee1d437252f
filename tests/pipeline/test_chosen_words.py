"""The words of a vocabulary are chosen from counts of any number, in bounded memory."""

import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from elmo_model.vocabulary import MARKS, SKIPPED_LINE, Vocabulary
from pipeline import chosen_words
from pipeline.chosen_words import choose_words
from pipeline.vocabulary_config import VocabularyLimits
from pipeline.word_counts import COUNTS_SCHEMA

NUM_TABLES, WORDS_PER_TABLE = 24, 10_000
# The counts of all words take 6 MB, and a Counter of them 30 MB. At once there may be a table, its
# words as Python's strings, and its parts.
MAX_PEAK_BYTES = 3_000_000
# Counts what is allocated from it; what was must go before the pool does.
COUNTING_POOL = pa.proxy_memory_pool(pa.default_memory_pool())


def table_of(counts):
    return pa.table([list(counts), list(counts.values())], schema=COUNTS_SCHEMA)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("num_buckets", [1, 7])
@pytest.mark.parametrize(("min_count", "max_size"), [(1, 10_000), (2, 10_000), (1, 20), (50, 4)])
def test_the_words_and_their_order_are_those_of_a_count_in_memory(
    min_count, max_size, num_buckets, temporary
):
    random = np.random.default_rng(3)
    tables, total = [], Counter()
    for number in range(9):
        names = [f"w{random.integers(300)}" for _ in range(200)]
        names += [MARKS[2], SKIPPED_LINE, "é", "\ue000"]
        tables.append(table_of(Counter(names)))
        total.update([*names, f"only-{number}"])
        tables.append(table_of({f"only-{number}": 1}))
    size_bytes = sum(table.nbytes for table in tables)
    kept, tally = choose_words(
        VocabularyLimits(min_count=min_count, max_size=max_size),
        iter(tables),
        size_bytes,
        bucket_bytes=size_bytes // num_buckets + 1,
    )
    words = (*MARKS, *kept["word"].to_pylist())
    assert words == Vocabulary.from_counts(total, min_count, max_size).words
    assert [total[word] for word in words[len(MARKS) :]] == kept["count"].to_pylist()
    assert tally.num_distinct == len(total)
    assert tally.num_mark_tokens == 9
    assert list(temporary.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_words(temporary):
    def tables():
        for number in range(NUM_TABLES):
            numbers = pa.array(np.arange(WORDS_PER_TABLE) + number * WORDS_PER_TABLE)
            words = pc.binary_join_element_wise("a-word-", numbers.cast(pa.string()), "")
            ones = pa.array(np.ones(WORDS_PER_TABLE, np.int64))
            yield pa.table([words, ones], schema=COUNTS_SCHEMA)

    total_bytes = sum(table.nbytes for table in tables())
    limits = VocabularyLimits(min_count=1, max_size=100)
    pool = pa.default_memory_pool()
    pa.set_memory_pool(COUNTING_POOL)
    tracemalloc.start()
    try:
        kept, tally = choose_words(limits, tables(), total_bytes, bucket_bytes=total_bytes // 20)
        peak_bytes = COUNTING_POOL.max_memory() + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)
    assert tally.num_distinct == NUM_TABLES * WORDS_PER_TABLE
    assert kept.num_rows == 97
    assert peak_bytes < MAX_PEAK_BYTES


def test_more_parts_than_files_may_be_open_are_not_made(temporary, monkeypatch):
    monkeypatch.setattr(chosen_words, "MAX_BUCKETS", 3)
    found = choose_words(VocabularyLimits(min_count=1), [table_of({"a": 1})], 1000, bucket_bytes=1)
    assert found[0]["word"].to_pylist() == ["a"]
