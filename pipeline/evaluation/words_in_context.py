"""Words in context (WiC): does a word mean the same in two sentences? Accuracy of a threshold.

The threshold on the cosine of the word's two vectors is set on the training pairs, for each line
alone. Format of Pilehvar and Camacho-Collados 2019: `*.data.txt` with the word, its part of speech,
its places and the two tokenised sentences between tabs; `*.gold.txt` with T or F a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.evaluation.documents import Document, thinned
from pipeline.evaluation.read_text import read_lines
from pipeline.evaluation.scores import Ratio
from pipeline.evaluation.systems import System, Vectors, centered_unit, pair_cosines
from pipeline.evaluation.task import Outcome, lines_of, table

Part = tuple[list[tuple[Document, int]], list[tuple[Document, int]], list[bool]]
"""First and second sentences, each with the place of the word, and whether it means the same."""


@dataclass(frozen=True)
class WordsInContext:
    """Pairs to set the threshold on, and pairs to test."""

    train: Part
    test: Part
    kind: str = "words in context"

    @classmethod
    def read(
        cls, train: tuple[Path, Path], test: tuple[Path, Path], max_items: int | None
    ) -> WordsInContext:
        """Read pairs of files with data and gold.

        Raises:
            SourceError: a file is not of that format.
        """
        return cls(_read(*train, max_items), _read(*test, max_items))

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Accuracy on the test pairs."""
        uses = [*self.train[0], *self.test[0], *self.train[1], *self.test[1]]
        documents = [document for document, _ in uses]
        lengths = np.array([len(document[0]) for document in documents], np.int64)
        positions = np.cumsum(lengths) - lengths + np.array([place for _, place in uses])
        gold = np.array([*self.train[2], *self.test[2]])
        num_train = len(self.train[2])

        def score(line: Vectors) -> Ratio:
            cosines = pair_cosines(centered_unit(line.matrix))
            threshold = best_threshold(cosines[:num_train], gold[:num_train])
            right = (cosines[num_train:] >= threshold) == gold[num_train:]
            return Ratio.mean(right)

        lines, statistics, _ = lines_of(
            systems, lambda system: system.tokens(documents, positions), score
        )
        notes = [
            "Half of the pairs mean the same: 0.5 is guessing. A line without context sees only "
            "whether the word has the same form twice."
        ]
        return Outcome([table("accuracy", lines, statistics)], len(gold) - num_train, notes)


def best_threshold(cosines_N: NDArray[np.float64], gold_N: NDArray[np.bool_]) -> float:
    """The cosine from which on "the same" is right most often on these pairs."""
    order = np.argsort(-cosines_N, kind="stable")
    values = cosines_N[order]
    # Right answers where the first n pairs are said to be the same, for n = 0 ... N.
    right = np.concatenate([[0], np.cumsum(np.where(gold_N[order], 1, -1))])
    # Pairs of one cosine are said to be the same together.
    allowed = np.concatenate([[True], values[1:] < values[:-1], [True]])
    best = int(np.argmax(np.where(allowed, right, -len(values) - 1)))
    if best == 0:
        return float("inf")
    if best == len(values):
        return float("-inf")
    return float((values[best - 1] + values[best]) / 2)


def _read(data: Path, gold: Path, max_items: int | None) -> Part:
    firsts, seconds, answers = [], [], []
    lines, marks = read_lines(data), read_lines(gold)
    if len(lines) != len(marks):
        raise SourceError(f"{data} has {len(lines)} pairs, {gold} {len(marks)} answers")
    for number, (line, mark) in enumerate(zip(lines, marks, strict=True), 1):
        fields = line.split("\t")
        try:
            _, _, places, *sentences = fields
            uses = [
                (sentence.split(" "), int(place))
                for sentence, place in zip(sentences, places.split("-"), strict=True)
            ]
            for words, place in uses:
                words[place]
            first, second = uses
        except (ValueError, IndexError):
            raise SourceError(
                f"{data}: line {number}: expected word, part of speech, places such as 3-1 and two "
                "sentences, between tabs"
            ) from None
        firsts.append(((first[0],), first[1]))
        seconds.append(((second[0],), second[1]))
        answers.append(mark.strip() == "T")
    kept = thinned(range(len(answers)), max_items)
    return [firsts[i] for i in kept], [seconds[i] for i in kept], [answers[i] for i in kept]
