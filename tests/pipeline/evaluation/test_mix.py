"""The learned mix finds the layer that says something, and stays equal where none does."""

import numpy as np
import pytest

from pipeline.evaluation.mix import Items, LearnedMix, learn_head, learn_mix, predictions

# Chance is a third; a layer that says all leaves little to guess.
GOOD_ACCURACY = 0.9


def items_with(informative, num_items=400, num_layers=3, dim=8, seed=0):
    """Items of three classes that only one layer tells apart; the others are noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=num_items)
    layers = random.standard_normal((num_items, num_layers, dim)).astype(np.float32)
    if informative is not None:
        centers = np.random.default_rng(99).standard_normal((3, dim)).astype(np.float32) * 3
        layers[:, informative] += centers[labels]
    return Items((layers,), labels, 3)


def accuracy(head, items):
    return float(np.mean(predictions(head, items) == items.targets_N))


@pytest.mark.parametrize("informative", [0, 1, 2])
def test_the_layer_that_tells_classes_apart_gets_the_largest_share(informative):
    mix, head = learn_mix(items_with(informative))
    assert int(np.argmax(mix.shares)) == informative
    assert sum(mix.shares) == pytest.approx(1)
    assert accuracy(head, items_with(informative, seed=1)) > GOOD_ACCURACY


def test_strong_regularisation_keeps_the_shares_nearly_equal():
    free, _ = learn_mix(items_with(1), l2=0.0)
    held, _ = learn_mix(items_with(1), l2=1.0)
    assert max(held.shares) - min(held.shares) < 0.5 * (max(free.shares) - min(free.shares))


def test_a_head_on_one_layer_knows_what_that_layer_says_and_no_more():
    train, test = items_with(2), items_with(2, seed=1)
    assert accuracy(learn_head(train, 2), test) > GOOD_ACCURACY
    assert accuracy(learn_head(train, 0), test) < 0.5
    assert accuracy(learn_head(train, None), test) > 0.5


def test_small_differences_beside_a_large_common_part_are_learned():
    train, test = items_with(1), items_with(1, seed=1)
    for items in (train, test):
        # As means of many tokens are, and one layer's more than another's.
        items.parts[0][:] = 0.01 * items.parts[0] + np.array([5, 1, 0.2], np.float32)[:, None]
    assert accuracy(learn_head(train, 1), test) > GOOD_ACCURACY
    mix, head = learn_mix(train)
    assert int(np.argmax(mix.shares)) == 1
    assert accuracy(head, test) > GOOD_ACCURACY


def test_pairs_are_learned_from_both_texts():
    random = np.random.default_rng(5)
    first = random.standard_normal((500, 2, 6)).astype(np.float32)
    noise = random.random((500, 1)).astype(np.float32) * 3
    second = first.copy()
    second[:, 1] += noise * random.standard_normal((500, 6)).astype(np.float32)
    second[:, 0] = random.standard_normal((500, 6))
    scores = -noise[:, 0].astype(np.float64)
    pairs = Items((first, second), (scores - scores.mean()) / scores.std(), None)
    mix, head = learn_mix(pairs)
    assert mix.shares[1] > 0.6
    correlation = np.corrcoef(predictions(head, pairs), scores)[0, 1]
    assert correlation > 0.6


def test_learning_twice_gives_the_same_numbers():
    assert learn_mix(items_with(1))[0] == learn_mix(items_with(1))[0]


def test_a_mix_is_applied_as_gamma_times_the_shares():
    layers = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    mix = LearnedMix((0.0, 0.0, float(np.log(2))), 2.0, 0.001, 1)
    expected = 2 * (0.25 * layers[:, 0] + 0.25 * layers[:, 1] + 0.5 * layers[:, 2])
    np.testing.assert_allclose(mix.apply(layers), expected, rtol=1e-6)
