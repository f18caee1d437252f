"""Classes of texts: accuracy of a linear probe on pooled vectors.

SST, TREC, BBC news and Chinese reviews; an own file is a table (.tsv, .csv, .jsonl) with a column
of texts and one of labels. Where no part is given for tests, a fifth of the distinct texts is held
out by a hash, and no text is on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import TextConfig
from pipeline.errors import SourceError
from pipeline.evaluation.bilms import TrainedBilm
from pipeline.evaluation.documents import Document, is_held_out, tokenised
from pipeline.evaluation.mix import Items, LearnedMix, learn_mix
from pipeline.evaluation.probe import probe
from pipeline.evaluation.read_text import columns_of, read_lines, read_rows
from pipeline.evaluation.scores import Ratio
from pipeline.evaluation.systems import System, Vectors
from pipeline.evaluation.task import Outcome, lines_of, table

TEXT, LABEL = "text", "label"
Labelled = tuple[str, str]
"""A text and its label."""


@dataclass(frozen=True)
class Classification:
    """Documents to learn from, then those to test; their class numbers alike."""

    documents: list[Document]
    labels_N: NDArray[np.int64]
    num_train: int
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    kind: str = "classification"

    @classmethod
    def of(
        cls,
        train: Sequence[Labelled],
        test: Sequence[Labelled],
        text: TextConfig | None,
        notes: Sequence[str] = (),
    ) -> Classification:
        """Tokenise; `text` None takes blanks as the borders of tokens, a text as one sentence.

        Raises:
            SourceError: fewer than two classes to learn, or nothing to test.
        """
        both = [*train, *test]
        classes = tuple(sorted({label for _, label in train}))
        if len(classes) < 2 or not test:
            raise SourceError(
                f"classification: {len(classes)} classes among {len(train)} texts to learn from, "
                f"{len(test)} to test; expected two or more, and texts of both parts"
            )
        number = {label: place for place, label in enumerate(classes)}
        texts = [text for text, _ in both]
        documents: list[Document]
        if text is None:
            documents = [[words.split() or ["."]] for words in texts]
        else:
            documents = tokenised(texts, text)
        # A class that was never seen is never predicted.
        labels = np.array([number.get(label, -1) for _, label in both], np.int64)
        return cls(documents, labels, len(train), classes, tuple(notes))

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Accuracy of logistic regression on the documents' vectors."""
        num_train, labels = self.num_train, self.labels_N

        def learn(model: TrainedBilm) -> LearnedMix:
            items = Items((model.layers[:num_train],), labels[:num_train], len(self.classes))
            return learn_mix(items)[0]

        unfinished = []

        def score(line: Vectors) -> Ratio:
            found = probe(line.matrix[:num_train], labels[:num_train], line.matrix[num_train:])
            unfinished.extend([] if found.converged else [line.name])
            return Ratio.mean(found.predicted_N == labels[num_train:])

        lines, statistics, mix = lines_of(
            systems, lambda system: system.documents(self.documents, num_train), score, learn
        )
        largest = np.bincount(labels[:num_train]).argmax()
        share = float(np.mean(labels[num_train:] == largest))
        notes = [
            f"{len(self.classes)} classes, {num_train:,} texts learned from; always saying the "
            f"largest class gives {share:.3f}.",
            *self.notes,
        ]
        if unfinished:
            notes.append(f"The probe's fit was stopped early for {', '.join(unfinished)}.")
        num_test = len(labels) - num_train
        return Outcome([table("accuracy", lines, statistics)], num_test, notes, mix)


def read_label_first(path: Path, encoding: str = "utf-8") -> list[Labelled]:
    """Lines of a label, a blank and a text, as SST and TREC are often handed on.

    Raises:
        SourceError: a line without a blank.
    """
    found = []
    for number, line in enumerate(read_lines(path, encoding), 1):
        label, blank, text = line.partition(" ")
        if not blank:
            raise SourceError(f"{path}: line {number} has no text behind its label")
        found.append((text, label))
    return found


def read_table(path: Path, text: str = TEXT, label: str = LABEL) -> list[Labelled]:
    """The columns `text` and `label` of a table; of equal texts the first stays.

    Raises:
        SourceError: it is not such a table.
    """
    rows = list(read_rows(path))
    columns_of(path, rows, (text, label))
    distinct: dict[str, str] = {}
    for row in rows:
        distinct.setdefault(row[text], row[label])
    return list(distinct.items())


def held_out_split(labelled: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Parts to learn from and to test, by the hash of the text."""
    held_out = is_held_out([text for text, _ in labelled]).tolist()
    pairs = list(zip(labelled, held_out, strict=True))
    return [item for item, held in pairs if not held], [item for item, held in pairs if held]
