"""Interpolated Kneser-Ney bigrams, the plain statistics that a trained language model must beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

BEGIN, END = "<S>", "</S>"


class KneserNeyBigrams:
    """p(w | v) = max(c(v w) - d, 0) / c(v) + d n(v) / c(v) p(w).

    n(v) is the number of words seen after v. p(w) is the share of all kinds of bigrams that end in
    w, discounted in the same way and interpolated with the uniform distribution.
    Source: Chen and Goodman 1999, section 2.7.
    """

    def __init__(
        self, sentences: Iterable[Sequence[str]], num_words: int, discount: float, floor: float
    ) -> None:
        """Count.

        Args:
            sentences: training text, words of the vocabulary only.
            num_words: that can be predicted, the end mark included.
            discount: d, taken from every count.
            floor: share of the uniform distribution in p(w).
        """
        self._pairs: Counter[tuple[str, str]] = Counter()
        for sentence in sentences:
            self._pairs.update(pairwise([BEGIN, *sentence, END]))
        self._before: Counter[str] = Counter()
        self._followers: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        for (before, word), count in self._pairs.items():
            self._before[before] += count
            self._followers[before] += 1
            self._kinds[word] += 1
        self._discount, self._floor, self._num_words = discount, floor, num_words

    def probability(self, before: str, word: str) -> float:
        """p(word | before)."""
        share = self._kinds[word] / len(self._pairs)
        lower = (1 - self._floor) * share + self._floor / self._num_words
        seen = self._before[before]
        if not seen:
            return lower
        own = max(self._pairs[before, word] - self._discount, 0.0)
        return (own + self._discount * self._followers[before] * lower) / seen

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """The exponential of the mean -ln p of all words and end marks."""
        total, number = 0.0, 0
        for sentence in sentences:
            for before, word in pairwise([BEGIN, *sentence, END]):
                total -= math.log(self.probability(before, word))
                number += 1
        return math.exp(total / number)
