"""A linear probe: logistic regression on fixed vectors, the same for every line of a table.

The strength of its regularisation is chosen for each line alone, on a fifth of the training items.
Needs scikit-learn (extra `evaluation`), which is imported only when it runs.

N items, D width.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.systems import Matrix

STRENGTHS = (1.0, 10.0, 100.0)
# To choose a strength, so many training items are enough.
MAX_CHOICE_ITEMS = 5000
MAX_ITERATIONS = 200
_SEED = 2018


@dataclass(frozen=True)
class Probed:
    """What a probe says of the test items, and whether its fit came to an end."""

    predicted_N: NDArray[np.int64]
    converged: bool


def probe(
    train: Matrix, labels_N: NDArray[np.int64], test: Matrix, max_iterations: int = MAX_ITERATIONS
) -> Probed:
    """Fit on training items and label the test items.

    Dense vectors are first brought to mean 0 and variance 1 / D in each direction (of the training
    items), so that rows have about length 1, as those of TF-IDF have, and one grid suits all.

    Args:
        train: (N, D) dense or sparse.
        labels_N: class numbers, of two classes or more.
        test: rows of the same width.
        max_iterations: of the solver; more are not tried.
    """
    if isinstance(train, np.ndarray):
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        scale = 1.0 / (np.maximum(deviation, 1e-6) * np.sqrt(train.shape[1]))
        train, test = (train - mean) * scale, (test - mean) * scale
    order = np.random.default_rng(_SEED).permutation(len(labels_N))[:MAX_CHOICE_ITEMS]
    held, used = order[: len(order) // 5], order[len(order) // 5 :]
    best = STRENGTHS[0]
    # Of a few items nothing can be chosen: none is held, or one class alone is left to fit.
    if len(held) and len(np.unique(labels_N[used])) > 1:
        right = []
        for strength in STRENGTHS:
            model, _ = _fit(train[used], labels_N[used], strength, max_iterations)
            right.append(np.mean(model.predict(train[held]) == labels_N[held]))
        best = STRENGTHS[int(np.argmax(right))]
    model, converged = _fit(train, labels_N, best, max_iterations)
    return Probed(np.asarray(model.predict(test), np.int64), converged)


def _fit(
    train: Matrix, labels_N: NDArray[np.int64], strength: float, max_iterations: int
) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=strength, max_iter=max_iterations)
    # The solver's products are small: threads that wait for each other made it 20 times slower.
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train, labels_N)
    return model, not any(item.category is ConvergenceWarning for item in caught)
