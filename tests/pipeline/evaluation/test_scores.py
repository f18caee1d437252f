"""Intervals and verdicts: they hold what they say, and call noise none."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.evaluation.scores import RankCorrelation, Ratio, Row, best_of, judge

# 5 of 100 miss the truth; of 100 so many may do so by chance (4 standard deviations of 2.2).
MAX_MISSES_OF_100 = 5 + 4 * 2.2


def row(name, values, group="layer"):
    return Row(name, group, Ratio.mean(np.asarray(values)))


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    misses = 0
    for _ in range(100):
        (score,) = judge([row("x", random.random(100) < 0.7)], [])
        misses += not score.low <= 0.7 <= score.high
    assert misses <= MAX_MISSES_OF_100


def test_a_difference_of_chance_is_none_and_a_real_one_is_named():
    random = np.random.default_rng(1)
    base = random.random(400)
    rows = [
        row("base", base > 0.5),
        row("other guesses", random.random(400) > 0.5),
        row("better", base > 0.3),
        row("worse", base > 0.7),
    ]
    found = {score.name: score.differences for score in judge(rows, ["base"])}
    assert found["base"] == ()
    assert found["other guesses"][0].verdict == "none"
    assert found["better"][0].verdict == "better"
    assert found["worse"][0].verdict == "worse"


def test_equal_answers_differ_by_exactly_nothing_though_each_score_is_uncertain():
    values = np.random.default_rng(2).random(50) > 0.4
    first, second = judge([row("a", values), row("b", values)], ["a"])
    assert first.high - first.low > 0.1
    (difference,) = second.differences
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert difference.verdict == "none"


def test_spearman_is_that_of_scipy_with_ties_and_0_where_nothing_varies():
    random = np.random.default_rng(3)
    predicted, gold = random.integers(0, 9, 60) * 1.0, random.integers(0, 5, 60) * 1.0
    statistic = RankCorrelation(predicted, gold)
    everything = np.arange(60)[None]
    assert statistic.resampled(everything)[0] == pytest.approx(spearmanr(predicted, gold)[0])
    sample = random.integers(60, size=(1, 60))
    expected = spearmanr(predicted[sample[0]], gold[sample[0]])[0]
    assert statistic.resampled(sample)[0] == pytest.approx(expected)
    assert RankCorrelation(np.ones(60), gold).resampled(everything)[0] == 0


def test_tokens_are_resampled_by_sentence():
    # All of a sentence is right or wrong: 20 sentences say what 20 answers say, not 2,000.
    right = (np.arange(20) % 2) * 100.0
    (by_sentence,) = judge([Row("x", "layer", Ratio(right, np.full(20, 100.0)))], [])
    (by_token,) = judge([row("x", np.repeat(right, 100) > 0)], [])
    assert by_sentence.value == by_token.value == 0.5
    assert by_sentence.high - by_sentence.low > 5 * (by_token.high - by_token.low)


def test_scores_are_the_same_in_every_run():
    values = np.random.default_rng(4).random(30)
    assert judge([row("x", values)], []) == judge([row("x", values)], [])


def test_rows_of_different_items_are_no_table():
    with pytest.raises(ValueError, match="same items"):
        judge([row("a", np.ones(3)), row("b", np.ones(4))], [])
    with pytest.raises(ValueError, match="same items"):
        judge([row("a", np.ones(0))], [])
    with pytest.raises(ValueError, match="names of their own"):
        judge([row("a", np.ones(3)), row("a", np.ones(3))], [])


def test_the_best_of_a_group_is_found_and_an_empty_group_has_none():
    rows = [row("a", [0, 1], "baseline"), row("b", [1, 1], "baseline"), row("c", [1, 1])]
    assert best_of(rows, "baseline") == "b"
    assert best_of(rows, "other") is None
