"""Numbers of the words whose vectors are stored, for word input. Knows no vectors.

A vocabulary file has a word a line, and line i (from 0) names row i of the table of vectors. Unlike
pretraining's vocabulary this one may lack `<UNK>`, as files that only list cached words do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END
from elmo_model.errors import ModelFileError, VocabularyError
from elmo_model.files import read_vocabulary
from elmo_model.vocabulary import ASCII_WHITESPACE, SKIPPED_LINE, UNKNOWN


def read_words(path: str | Path) -> tuple[str, ...]:
    r"""The words of a vocabulary file, in order.

    Lines end at `\n` only and lose ASCII whitespace at both ends; `!!!MAXTERMID` is skipped.

    Raises:
        VocabularyError: the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        text = read_vocabulary(path).decode("utf-8")
    except ModelFileError as error:
        raise VocabularyError(str(error)) from None
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: byte {error.start} is not UTF-8") from error
    stripped = (line.strip(ASCII_WHITESPACE) for line in text.removesuffix("\n").split("\n"))
    return tuple(word for word in stripped if word != SKIPPED_LINE)


class WordIds:
    """Row numbers of a table's words; words that it lacks take the row of `<UNK>`."""

    def __init__(self, words: Sequence[str]) -> None:
        """Number `words` from 0; of two equal words the later counts, as in the original.

        Raises:
            VocabularyError: `<S>` or `</S>` is missing, which every sentence needs.
        """
        self._ids = {word: row for row, word in enumerate(words)}
        missing = [mark for mark in (SENTENCE_BEGIN, SENTENCE_END) if mark not in self._ids]
        if missing:
            raise VocabularyError(
                f"vocabulary: {', '.join(missing)} missing among {len(words)} words; "
                "every sentence starts and ends with them"
            )
        self._unknown = self._ids.get(UNKNOWN)

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers (len(words),) int64.

        Raises:
            VocabularyError: a word is not listed, and neither is `<UNK>`.
        """
        ids = self._ids
        rows = [ids.get(word, self._unknown) for word in words]
        if self._unknown is None and None in rows:
            raise VocabularyError(
                f"vocabulary: {words[rows.index(None)]!r} is not listed and {UNKNOWN} is not "
                "either; use the character model, or a vocabulary with vectors for both"
            )
        return np.array(rows, np.int64)
