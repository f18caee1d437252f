"""Words without a sentence: how alike people find them, and analogies. Formats of the public sets.

Similarity: lines of word, word, score between tabs (WS-353, SimLex-999); Spearman with cosines.
Analogies: lines of four words, sections headed by `: name` (Mikolov et al. 2013); 3CosAdd among the
words of the file, which is a small vocabulary: published numbers choose among far more words.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.evaluation.documents import thinned
from pipeline.evaluation.read_text import read_lines
from pipeline.evaluation.scores import RankCorrelation, Ratio
from pipeline.evaluation.systems import Matrix, System, centered_unit, pair_cosines
from pipeline.evaluation.task import Outcome, lines_of, table

MAX_MEMBER_BYTES = 16 << 20
_CHUNK_QUESTIONS = 2048
_ALONE = "Each word is a sentence of its own; a line without context is its spelling's vector."


@dataclass(frozen=True)
class WordSimilarity:
    """Word pairs, all first words before all second ones, and people's scores."""

    words: list[str]
    gold_N: NDArray[np.float64]
    kind: str = "word similarity"

    @classmethod
    def read(cls, where: str, lines: Sequence[str], max_items: int | None) -> WordSimilarity:
        """Read lines of two words and a score.

        Raises:
            SourceError: a line is something else, or there is none.
        """
        pairs = []
        for number, line in enumerate(lines, 1):
            try:
                first, second, score = line.split("\t")[:3]
                pairs.append((first, second, float(score)))
            except ValueError:
                raise SourceError(
                    f"{where}: line {number}: expected word, word and score between tabs"
                ) from None
        if not pairs:
            raise SourceError(f"{where}: has no line; expected word, word and score between tabs")
        pairs = thinned(pairs, max_items)
        words = [pair[place] for place in (0, 1) for pair in pairs]
        return cls([str(word) for word in words], np.array([pair[2] for pair in pairs]))

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Spearman's rho of the cosines."""
        lines, statistics, _ = lines_of(
            systems,
            lambda system: system.words(self.words),
            lambda line: RankCorrelation(pair_cosines(centered_unit(line.matrix)), self.gold_N),
        )
        return Outcome([table("Spearman", lines, statistics)], len(self.gold_N), [_ALONE])


@dataclass(frozen=True)
class Analogies:
    """Questions as numbers (Q, 4) of words, and whether each is about meaning or about form."""

    words: list[str]
    questions_Q4: NDArray[np.int64]
    is_form_Q: NDArray[np.bool_]
    kind: str = "analogies"

    @classmethod
    def read(cls, path: Path, max_items: int | None) -> Analogies:
        """Read questions; sections named `gram...` are about form, all others about meaning.

        Raises:
            SourceError: a line has not four words, or there is none.
        """
        number: dict[str, int] = {}
        questions, is_form, section = [], [], ""
        for place, line in enumerate(read_lines(path), 1):
            if line.startswith(":"):
                section = line[1:].strip()
                continue
            words = line.split()
            if len(words) != 4:
                raise SourceError(f"{path}: line {place}: expected four words or ': section'")
            questions.append([number.setdefault(word, len(number)) for word in words])
            is_form.append(section.startswith("gram"))
        if not questions:
            raise SourceError(f"{path}: has no question; expected lines of four words")
        kept = thinned(range(len(questions)), max_items)
        return cls(list(number), np.array(questions)[kept], np.array(is_form)[kept])

    def measure(self, systems: Sequence[System]) -> Outcome:
        """Accuracy: is the fourth word nearest to b - a + c, the three left out?"""
        lines, right, _ = lines_of(
            systems,
            lambda system: system.words(self.words),
            lambda line: self._right(line.matrix),
        )
        tables = []
        for name, chosen in (("of meaning", ~self.is_form_Q), ("of form", self.is_form_Q)):
            if chosen.any():
                statistics = [Ratio.mean(found[chosen]) for found in right]
                tables.append(table(f"accuracy {name}", lines, statistics))
        notes = [
            f"Answers are chosen among the {len(self.words):,} words of the questions.",
            _ALONE,
        ]
        return Outcome(tables, len(self.questions_Q4), notes)

    def _right(self, matrix: Matrix) -> NDArray[np.bool_]:
        unit = centered_unit(matrix)
        unit_WD = unit if isinstance(unit, np.ndarray) else unit.toarray()
        found = []
        for first in range(0, len(self.questions_Q4), _CHUNK_QUESTIONS):
            part_Q4 = self.questions_Q4[first : first + _CHUNK_QUESTIONS]
            a, b, c, answer = part_Q4.T
            scores_QW = (unit_WD[b] - unit_WD[a] + unit_WD[c]) @ unit_WD.T
            np.put_along_axis(scores_QW, part_Q4[:, :3], -np.inf, axis=1)
            found.append(scores_QW.argmax(axis=1) == answer)
        return np.concatenate(found)


def read_member(archive: Path, name: str) -> list[str]:
    """Lines of one file in a tar archive, packed or not.

    Raises:
        SourceError: no such file in it, larger than 16 MiB, or the archive is damaged.
    """
    try:
        with tarfile.open(archive) as files:
            member = files.extractfile(name)
            content = None if member is None else member.read(MAX_MEMBER_BYTES + 1)
    except (OSError, tarfile.TarError, KeyError) as error:
        raise SourceError(f"{archive}: {name} cannot be read: {error}") from None
    if content is None or len(content) > MAX_MEMBER_BYTES:
        raise SourceError(f"{archive}: {name} is not a file of at most 16 MiB")
    return [line for line in content.decode().splitlines() if line.strip()]
