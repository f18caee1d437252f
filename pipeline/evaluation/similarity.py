"""Similarity of sentence pairs: Spearman between cosines and people's scores (STS-B; own files).

A file is a table (.tsv, .csv, .jsonl) with two columns of texts and one of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.evaluation.bilms import TrainedBilm
from pipeline.evaluation.documents import Document, thinned, tokenised
from pipeline.evaluation.mix import Items, LearnedMix, learn_mix
from pipeline.evaluation.read_text import columns_of, numbers_of, read_rows
from pipeline.evaluation.scores import RankCorrelation
from pipeline.evaluation.systems import System, centered_unit, pair_cosines, white_note, with_white
from pipeline.evaluation.task import Outcome, lines_of, table

SENTENCES, SCORE = ("sentence1", "sentence2"), "score"


@dataclass(frozen=True)
class Similarity:
    """Pairs to test, `documents` being all first sentences, then all second ones.

    `train` pairs, where there are some, are what a mix is learned from; they change no other line.
    """

    documents: list[Document]
    gold_N: NDArray[np.float64]
    train: list[Document]
    train_gold_N: NDArray[np.float64]
    kind: str = "similarity"

    @classmethod
    def read(
        cls,
        test: Path,
        train: Path | None,
        text: TextConfig,
        max_items: int | None,
        columns: tuple[str, str, str] = (*SENTENCES, SCORE),
    ) -> Similarity:
        """Read the pairs to test, and those to learn a mix from.

        Raises:
            SourceError: a file is not a table with these columns.
        """
        found: list[tuple[list[Document], NDArray[np.float64]]] = []
        for path in (test, train):
            pairs = ([], np.empty(0)) if path is None else _read(path, text, max_items, columns)
            found.append(pairs)
        return cls(*found[0], *found[1])

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Spearman's rho of the cosines."""
        num_test = len(self.documents)
        everything = [*self.documents, *self.train]

        def learn(model: TrainedBilm) -> LearnedMix:
            layers_NKD = model.layers[num_test:]
            half = len(layers_NKD) // 2
            first, second = layers_NKD[:half], layers_NKD[half:]
            targets = (self.train_gold_N - self.train_gold_N.mean()) / self.train_gold_N.std()
            return learn_mix(Items((first, second), targets, None))[0]

        lines, statistics, mix = lines_of(
            systems,
            lambda system: with_white(system.documents(everything, num_test), num_test),
            lambda line: RankCorrelation(
                pair_cosines(centered_unit(line.matrix[:num_test])), self.gold_N
            ),
            learn if self.train else None,
        )
        said = "Cosines of the means of token vectors, less the mean of all sentences"
        notes = [f"{said}{white_note(lines)}."]
        return Outcome([table("Spearman", lines, statistics)], len(self.gold_N), notes, mix)


def _read(
    path: Path, text: TextConfig, max_items: int | None, columns: tuple[str, str, str]
) -> tuple[list[Document], NDArray[np.float64]]:
    rows = list(read_rows(path))
    columns_of(path, rows, columns)
    gold = np.array(thinned(numbers_of(path, rows, columns[2]), max_items))
    rows = thinned(rows, max_items)
    sentences = [row[name] for name in columns[:2] for row in rows]
    return tokenised(sentences, text), gold
