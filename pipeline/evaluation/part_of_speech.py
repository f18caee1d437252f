"""Parts of speech: accuracy of a linear probe on each token's vector (Universal Dependencies).

CoNLL-U files: the word is column 2, its universal part of speech column 4; ranges of tokens and
empty nodes are left out. What is resampled for intervals are sentences, since tokens of one
sentence are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.evaluation.bilms import TrainedBilm
from pipeline.evaluation.documents import Document, thinned
from pipeline.evaluation.mix import Items, LearnedMix, learn_mix
from pipeline.evaluation.probe import probe
from pipeline.evaluation.read_text import read_text
from pipeline.evaluation.scores import Ratio
from pipeline.evaluation.systems import System, Vectors
from pipeline.evaluation.task import Outcome, lines_of, table

# A probe has learned what it can from so many tokens, and all their layers must fit into memory.
MAX_TRAIN_TOKENS = 40_000
MAX_MIX_TOKENS = 20_000
MAX_ITERATIONS = 100

Tagged = list[tuple[str, str]]
"""A sentence: words with their tags."""


@dataclass(frozen=True)
class PartOfSpeech:
    """Tagged sentences to learn from, and to test."""

    train: list[Tagged]
    test: list[Tagged]
    kind: str = "part of speech"

    @classmethod
    def read(cls, train: Path, test: Path, max_items: int | None) -> PartOfSpeech:
        """Read CoNLL-U files; at most `max_items` sentences of each.

        Raises:
            SourceError: a file is not CoNLL-U, has no sentence, or one tag only to learn.
        """
        learned = thinned(read_conllu(train), max_items)
        lengths = np.cumsum([len(sentence) for sentence in learned])
        num_kept = max(1, int(np.searchsorted(lengths, MAX_TRAIN_TOKENS, side="right")))
        # Those at even distances may be longer than the first ones, which were counted.
        kept = thinned(learned, num_kept)
        lengths = np.cumsum([len(sentence) for sentence in kept])
        kept = kept[: max(1, int(np.searchsorted(lengths, MAX_TRAIN_TOKENS, side="right")))]
        if len({tag for sentence in kept for _, tag in sentence}) < 2:
            raise SourceError(f"{train}: one tag in {len(kept)} sentences; expected two or more")
        return cls(kept, thinned(read_conllu(test), max_items))

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Accuracy over tokens of logistic regression on their vectors."""
        sentences = [*self.train, *self.test]
        documents: list[Document] = [[[word for word, _ in sentence]] for sentence in sentences]
        tags = [tag for sentence in sentences for _, tag in sentence]
        num_train = sum(map(len, self.train))
        classes = {tag: number for number, tag in enumerate(sorted(set(tags[:num_train])))}
        labels = np.array([classes.get(tag, -1) for tag in tags], np.int64)

        def learn(model: TrainedBilm) -> LearnedMix:
            some = np.array(thinned(range(num_train), MAX_MIX_TOKENS))
            return learn_mix(Items((model.layers[some],), labels[some], len(classes)))[0]

        everything = np.arange(len(tags))
        lengths = np.array([len(sentence) for sentence in self.test])
        unfinished = []

        def score(line: Vectors) -> Ratio:
            train, test = line.matrix[:num_train], line.matrix[num_train:]
            found = probe(train, labels[:num_train], test, MAX_ITERATIONS)
            right = found.predicted_N == labels[num_train:]
            unfinished.extend([] if found.converged else [line.name])
            return _by_sentence(right, lengths)

        lines, statistics, mix = lines_of(
            systems, lambda system: system.tokens(documents, everything), score, learn
        )
        notes = [
            f"{len(classes)} tags, {num_train:,} tokens learned from, {len(tags) - num_train:,} "
            "tested; intervals are over sentences."
        ]
        if unfinished:
            notes.append(f"The probe's fit was stopped early for {', '.join(unfinished)}.")
        return Outcome([table("accuracy", lines, statistics)], len(self.test), notes, mix)


def read_conllu(path: Path) -> list[Tagged]:
    """Sentences of words and universal tags.

    Raises:
        SourceError: a line has fewer than four columns, or there is no sentence.
    """
    sentences: list[Tagged] = []
    sentence: Tagged = []
    for number, line in enumerate([*read_text(path).splitlines(), ""], 1):
        if line.startswith("#"):
            continue
        if not line.strip():
            if sentence:
                sentences.append(sentence)
            sentence = []
            continue
        columns = line.split("\t")
        if len(columns) < 4:
            raise SourceError(f"{path}: line {number} has {len(columns)} columns, CoNLL-U has 10")
        if columns[0].isdigit():
            sentence.append((columns[1], columns[3]))
    if not sentences:
        raise SourceError(f"{path}: has no sentence")
    return sentences


def _by_sentence(right_M: NDArray[np.bool_], lengths_N: NDArray[np.int64]) -> Ratio:
    starts = np.cumsum(lengths_N) - lengths_N
    return Ratio(np.add.reduceat(right_M.astype(np.float64), starts), lengths_N.astype(np.float64))
