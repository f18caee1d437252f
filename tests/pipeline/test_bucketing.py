"""Sentences are grouped by length within a token budget, and none is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bucketing import SENTENCE_MARKS, batches, windows
from pipeline.errors import ConfigError

lengths = st.lists(st.integers(1, 60), max_size=200)


@given(lengths, st.integers(62, 500))
def test_every_sentence_is_in_exactly_one_batch_within_the_budget(values, max_tokens):
    array = np.array(values, dtype=np.int64)
    seen = []
    for rows in batches(array, max_tokens):
        assert len(rows) * (array[rows].max() + SENTENCE_MARKS) <= max_tokens
        assert (np.diff(array[rows]) <= 0).all()
        seen.extend(rows.tolist())
    assert sorted(seen) == list(range(len(values)))


@given(lengths, st.integers(1, 300))
def test_windows_hold_whole_documents_in_order(values, window_tokens):
    array = np.array(values, dtype=np.int64)
    covered = []
    for window in windows(array, window_tokens):
        documents = array[window]
        assert len(documents) == 1 or documents.sum() <= window_tokens
        covered.extend(range(window.start, window.stop))
    assert covered == list(range(len(values)))


def test_similar_lengths_meet_so_that_little_is_padded():
    array = np.random.default_rng(1).integers(1, 60, 5000)
    padded = sum(
        len(rows) * (int(array[rows[0]]) + SENTENCE_MARKS) for rows in batches(array, 4096)
    )
    real = int(array.sum()) + SENTENCE_MARKS * len(array)
    assert padded / real < 1.03


def test_a_sentence_over_the_budget_is_an_error_that_names_both_settings():
    with pytest.raises(ConfigError, match=r"max_tokens is 10.*max_sentence_tokens"):
        list(batches(np.array([9]), 10))
