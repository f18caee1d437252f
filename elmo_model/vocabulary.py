"""The word vocabulary of pretraining: which words are predicted, and under which id.

The file is the one that the published models come with: UTF-8, one word a line, the id is the line
number, `<S>`, `</S>` and `<UNK>` first by convention, then by falling count (the sampled softmax
draws its negatives by rank, so the order matters). Knows no tensors or batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elmo_model.characters import SENTENCE_BEGIN, SENTENCE_END
from elmo_model.errors import ModelFileError
from elmo_model.files import read_vocabulary

# A longer run without a blank is cut by the tokeniser, and a model sees 50 bytes of a word.
MAX_WORD_CHARACTERS = 1 << 16
UNKNOWN = "<UNK>"
MARKS = (SENTENCE_BEGIN, SENTENCE_END, UNKNOWN)

# Some published vocabularies end with this line; it is not a word and takes no id.
SKIPPED_LINE = "!!!MAXTERMID"

# Python's own str.strip() would also take no-break and ideographic spaces, which occur in words.
ASCII_WHITESPACE = " \t\n\r\v\f"


class Vocabulary:
    """An ordered set of words with the three marks in it; a word's id is its position."""

    def __init__(self, words: Iterable[str], where: str = "vocabulary") -> None:
        """Take `words` in the order of their ids.

        Args:
            words: all words, the marks among them.
            where: file name or the like, for messages.

        Raises:
            ModelFileError: a mark is missing, a word occurs twice, or a word could not be written
                to a file and read back (empty, line breaks, ASCII blanks at its ends).
        """
        self.words: tuple[str, ...] = tuple(words)
        self._ids: dict[str, int] = {}
        for position, word in enumerate(self.words):
            _check_word(word, f"{where}: word {position}")
            earlier = self._ids.setdefault(word, position)
            if earlier != position:
                raise ModelFileError(
                    f"{where}: {word[:100]!r} is both word {earlier} and word {position}; "
                    "a word may have one id only, remove the second"
                )
        missing = [mark for mark in MARKS if mark not in self._ids]
        if missing:
            raise ModelFileError(
                f"{where}: {', '.join(missing)} missing among {len(self.words)} words; "
                f"a vocabulary must hold {', '.join(MARKS)}, by convention as its first lines"
            )
        self.begin_id = self._ids[SENTENCE_BEGIN]
        self.end_id = self._ids[SENTENCE_END]
        self.unknown_id = self._ids[UNKNOWN]

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.words)} words)"

    def id_of(self, word: str) -> int:
        """The id of `word`, or that of `<UNK>` for a word outside the vocabulary."""
        return self._ids.get(word, self.unknown_id)

    def ids_of(self, words: Sequence[str]) -> npt.NDArray[np.int64]:
        """Ids (len(words),) int64; `<UNK>`'s for words outside the vocabulary."""
        unknown = self.unknown_id
        ids = self._ids
        return np.fromiter((ids.get(word, unknown) for word in words), np.int64, len(words))

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        r"""Read a vocabulary file.

        Lines end at `\n` only and lose ASCII whitespace at both ends; `!!!MAXTERMID` is skipped.

        Raises:
            ModelFileError: too large, not UTF-8, an empty line, a word twice, or a mark missing.
            OSError: the file cannot be read.
        """
        return cls.from_bytes(read_vocabulary(path), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Vocabulary:
        """The vocabulary in the bytes of a vocabulary file; see `read`."""
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{where}: byte {error.start} is not UTF-8; convert the file to UTF-8"
            ) from None
        lines = text.removesuffix("\n").split("\n")
        stripped = (line.strip(ASCII_WHITESPACE) for line in lines)
        return cls((word for word in stripped if word != SKIPPED_LINE), where)

    def to_bytes(self) -> bytes:
        """The bytes of the vocabulary file: UTF-8, one word a line, a newline at the end."""
        return "".join(f"{word}\n" for word in self.words).encode("utf-8")

    def write(self, path: str | Path) -> None:
        """Write the vocabulary file; `read` gives an equal vocabulary back."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], min_count: int = 1, max_size: int | None = None
    ) -> Vocabulary:
        """The marks, then the most frequent words by falling count.

        Words of equal count are in code-point order, so that the result does not depend on the
        order of the text. Words that a vocabulary file cannot hold are left out.

        Args:
            counts: how often each word occurs.
            min_count: rarer words are left out.
            max_size: most words to keep, the three marks included; None keeps all.

        Raises:
            ValueError: `max_size` leaves no room beside the marks.
        """
        if max_size is not None and max_size <= len(MARKS):
            raise ValueError(
                f"a vocabulary of {max_size} words has no room beside {', '.join(MARKS)}; "
                f"allow at least {len(MARKS) + 1}"
            )
        kept = [
            (word, count)
            for word, count in counts.items()
            if count >= min_count and word not in MARKS and _fault(word) is None
        ]
        kept.sort(key=lambda item: (-item[1], item[0]))
        room = None if max_size is None else max_size - len(MARKS)
        return cls((*MARKS, *(word for word, _ in kept[:room])))


def count_words(sentences: Iterable[Iterable[str]]) -> Counter[str]:
    """How often each word occurs in tokenised sentences."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(sentence)
    return counts


def _fault(word: str) -> str | None:
    if not word:
        return "is empty"
    if "\n" in word or "\r" in word:
        return "holds a line break"
    if len(word) > MAX_WORD_CHARACTERS:
        return f"is longer than {MAX_WORD_CHARACTERS} characters"
    if word.strip(ASCII_WHITESPACE) != word:
        return "begins or ends with an ASCII blank"
    if word == SKIPPED_LINE:
        return "is a line that readers skip"
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return "holds a lone surrogate, which UTF-8 cannot express"
    return None


def _check_word(word: str, where: str) -> None:
    fault = _fault(word)
    if fault is not None:
        raise ModelFileError(f"{where}, {word[:100]!r}, {fault}; remove it")
