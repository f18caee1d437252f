"""Batches that do not fit into memory are halved, the budget is kept, and no sentence is lost."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bucketing import SENTENCE_MARKS
from pipeline.errors import ConfigError
from pipeline.token_budget import TokenBudget
from pipeline.token_window import BatchCounts, WindowError

# More than any machine has: numpy raises the MemoryError that it raises where memory is short.
TOO_MUCH_BYTES = 1 << 60
MAX_TOKENS = 4096


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Nothing is freed here, and collecting the garbage of a whole test session takes seconds."""
    monkeypatch.setattr("pipeline.token_budget.free_caches", lambda: None)


class Memory:
    """Runs batches of up to `fitting_tokens` padded tokens; counts how often each sentence was."""

    def __init__(self, lengths, fitting_tokens):
        self.lengths = np.array(lengths, np.int64)
        self.fitting_tokens = fitting_tokens
        self.done = np.zeros(len(lengths), int)
        self.num_failures = 0

    def run_batch(self, rows):
        padded = (int(self.lengths[rows].max()) + SENTENCE_MARKS) * len(rows)
        if padded > self.fitting_tokens:
            self.num_failures += 1
            np.empty(TOO_MUCH_BYTES, np.int8)
        self.done[rows] += 1


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(62, MAX_TOKENS))
def test_every_sentence_runs_once_whatever_fits(lengths, fitting_tokens):
    memory, budget, counts = Memory(lengths, fitting_tokens), TokenBudget(MAX_TOKENS), BatchCounts()
    budget.run(memory.lengths, memory.run_batch, counts)
    assert (memory.done == 1).all()
    assert counts.num_oom_splits == memory.num_failures
    assert counts.num_oom_splits <= math.ceil(math.log2(MAX_TOKENS / fitting_tokens))
    assert counts.safe_tokens == (budget.tokens if memory.num_failures else None)
    assert counts.real_tokens == sum(lengths) + SENTENCE_MARKS * len(lengths)


def test_the_budget_is_found_once_and_not_for_every_window():
    memory, budget, counts = Memory([20] * 1000, 600), TokenBudget(MAX_TOKENS), BatchCounts()
    for _ in range(5):
        budget.run(memory.lengths, memory.run_batch, counts)
    assert memory.num_failures == counts.num_oom_splits == 3
    assert 300 <= counts.safe_tokens == budget.tokens <= 600
    assert (memory.done == 5).all()


def test_a_longer_sentence_than_the_lowered_budget_is_tried_alone():
    memory, budget, counts = Memory([30] * 100, 200), TokenBudget(MAX_TOKENS), BatchCounts()
    budget.run(memory.lengths, memory.run_batch, counts)
    longer = Memory([150, 20, 20, 20], 200)
    budget.run(longer.lengths, longer.run_batch, counts)
    assert (longer.done == 1).all()
    assert longer.num_failures == 0


def test_a_sentence_that_does_not_fit_alone_is_named_by_its_size():
    memory = Memory([100, 5], 50)
    with pytest.raises(WindowError, match="102 tokens .* does not fit into memory alone") as caught:
        TokenBudget(MAX_TOKENS).run(memory.lengths, memory.run_batch, BatchCounts())
    assert caught.value.code == "out_of_memory"


def test_other_errors_and_too_small_a_budget_are_not_taken_for_a_lack_of_memory():
    def broken(rows):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        TokenBudget(MAX_TOKENS).run(np.array([3]), broken, BatchCounts())
    with pytest.raises(ConfigError, match="max_tokens is 10"):
        TokenBudget(10).run(np.array([9]), broken, BatchCounts())
