"""Start the word table of a token model from pretrained word vectors.

The vectors of a vocabulary's words are picked out of a file while it streams by, put into the table
of a new model, and held fixed there if wanted. Words are compared byte by byte, the sentence marks
and `<UNK>` too: other spellings that such files have (`</s>`, `<unk>`, `unk`) are other words.
Knows no file format; that is word_vector_files.py.

Axes: V words of the vocabulary, P numbers of a vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from elmo_model.errors import ElmoError, ModelFileError
from elmo_model.token_embedding import TokenEmbedding
from elmo_model.vocabulary import Vocabulary
from elmo_model.word_vector_files import (
    VectorRows,
    WordVectorFormat,
    opened_word_vectors,
    shown,
)

_EXAMPLES = 3


@dataclass(frozen=True)
class WordVectors:
    """What a file of word vectors says about the words of a vocabulary.

    Attributes:
        vectors_VP: float32, a row for each word of the vocabulary; zeros where none was found.
        found_V: bool, which words were found.
        num_rows: rows of the file.
        num_lowercased: words that took the vector of their lower-case form.
        num_duplicates: rows of words of the vocabulary that came earlier; the first one counts.
        num_not_utf8: rows left out since their word is not UTF-8, which no vocabulary can hold.
    """

    vectors_VP: NDArray[np.float32]
    found_V: NDArray[np.bool_]
    num_rows: int
    num_lowercased: int = 0
    num_duplicates: int = 0
    num_not_utf8: int = 0

    @property
    def num_found(self) -> int:
        """Words of the vocabulary that have a vector."""
        return int(self.found_V.sum())


def read_word_vectors(
    path: str | Path,
    vocabulary: Vocabulary,
    width: int | None = None,
    file_format: WordVectorFormat | None = None,
    *,
    lowercase_fallback: bool = False,
) -> WordVectors:
    """Read the vectors of a vocabulary's words from a file of word2vec's or GloVe's formats.

    Memory holds one matrix (V, P) and a row of the file, however large it is. Of rows whose word is
    not in the vocabulary only the number of fields is checked.

    Args:
        path: local file, compressed with gzip or not; see `word_vector_files`.
        vocabulary: the words to keep.
        width: the model's P, `lstm.projection_dim`; None takes the file's.
        file_format: the file's format; None finds it from its content.
        lowercase_fallback: give a word that is not in the file the vector of its lower-case form;
            this holds for the marks too, so `<UNK>` may take that of `<unk>`.

    Raises:
        ModelFileError: names the file and the line or byte, for a file that is missing, empty,
            damaged or of another format, a header that is wrong, a row with another number of
            columns, numbers that are not finite, another width than the model's, or no word of the
            vocabulary at all.
    """
    with opened_word_vectors(path, file_format) as file:
        if width not in (None, file.width):
            raise ModelFileError(
                f"{path}: vectors of {file.width} numbers, the model's words have {width}: set "
                f"lstm.projection_dim to {file.width}, or give vectors of {width} numbers"
            )
        collector = _Collector(vocabulary, file.width, lowercase_fallback)
        return collector.collect(file)


def set_word_vectors(
    embedding: TokenEmbedding, vectors: WordVectors, scale: float | None = None
) -> None:
    """Put vectors into the table of a model; rows of words that were not found stay as they are.

    Where the softmax shares the table, its weights are set with it.

    Args:
        embedding: the table of a model with the vocabulary that the vectors were read for.
        vectors: from `read_word_vectors`.
        scale: what to multiply them with; None takes them as they are. A new table holds numbers
            of at most sqrt(6 / (V + P)), which is far less than most files do.

    Raises:
        ElmoError: the table has another shape.
        ValueError: a scale that is not a positive number.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a positive number, found {scale}")
    table_VP = embedding.embedding
    if tuple(table_VP.shape) != vectors.vectors_VP.shape:
        raise ElmoError(
            f"word vectors: of shape {vectors.vectors_VP.shape}, the model's word table has "
            f"{tuple(table_VP.shape)}: read them with the model's vocabulary, and set "
            "lstm.projection_dim to their width"
        )
    found = np.flatnonzero(vectors.found_V)
    rows_NP = torch.from_numpy(vectors.vectors_VP[found])
    with torch.no_grad():
        table_VP[torch.from_numpy(found)] = (rows_NP * (scale or 1.0)).to(table_VP)


def freeze_rows(embedding: TokenEmbedding, rows_V: NDArray[np.bool_]) -> RemovableHandle:
    """Hold rows of the table fixed while a model is trained: their gradient becomes zero.

    Meant for `WordVectors.found_V`. The other rows learn: few files have the sentence marks and
    `<UNK>`, and a table that is fixed as a whole would leave them random for ever. The optimiser
    gets all parameters as always; with Adagrad, and with AdamW without weight decay, rows whose
    gradient was always zero keep their bits. Call it before the first step, and again on a model
    that is read from a checkpoint: what is frozen is not part of a model's weights. A softmax that
    shares the table is frozen with it, but for its bias.

    Args:
        embedding: the table.
        rows_V: True for the rows to hold.

    Returns: a handle; its `remove()` lets the rows learn again.

    Raises:
        ElmoError: not a row for each word of the table.
    """
    table_VP = embedding.embedding
    if rows_V.shape != (len(table_VP),) or rows_V.dtype != np.bool_:
        raise ElmoError(
            f"frozen rows: expected {len(table_VP)} booleans, one for each word of the table, "
            f"found {rows_V.dtype} of shape {rows_V.shape}"
        )
    frozen_V1 = torch.from_numpy(rows_V.copy())[:, None]

    def without_frozen(gradient_VP: Tensor) -> Tensor:
        nonlocal frozen_V1
        frozen_V1 = frozen_V1.to(gradient_VP.device)
        return gradient_VP.masked_fill(frozen_V1, 0.0)

    # Untyped in torch.
    register: Any = table_VP.register_hook
    handle: RemovableHandle = register(without_frozen)
    return handle


class _Collector:
    """Keeps the rows of a file whose words are in the vocabulary."""

    def __init__(self, vocabulary: Vocabulary, width: int, lowercase_fallback: bool) -> None:
        self._ids = {word.encode(): row for row, word in enumerate(vocabulary.words)}
        self._folded_ids: dict[bytes, list[int]] = {}
        if lowercase_fallback:
            for row, word in enumerate(vocabulary.words):
                if word.lower() != word:
                    self._folded_ids.setdefault(word.lower().encode(), []).append(row)
        self._vectors_VP = np.zeros((len(vocabulary), width), np.float32)
        self._found_V = np.zeros(len(vocabulary), np.bool_)
        self._lowercased_V = np.zeros(len(vocabulary), np.bool_)

    def collect(self, file: VectorRows) -> WordVectors:
        """Go through the whole file once."""
        ids, folded_ids, found_V = self._ids, self._folded_ids, self._found_V
        num_rows = num_duplicates = num_not_utf8 = 0
        examples: list[bytes] = []
        for row in file.rows:
            word = row[1]
            num_rows += 1
            if num_rows <= _EXAMPLES:
                examples.append(word)
            place = ids.get(word)
            folded = folded_ids.get(word, ())
            if place is None and not folded:
                num_not_utf8 += not _is_utf8(word)
                continue
            if place is not None and found_V[place]:
                num_duplicates += 1
                continue
            self._keep(file.numbers(row), place, folded)
        found_V |= self._lowercased_V
        if not found_V.any():
            self._fail(file.where, num_rows, examples)
        num_lowercased = int(self._lowercased_V.sum())
        return WordVectors(
            self._vectors_VP, found_V, num_rows, num_lowercased, num_duplicates, num_not_utf8
        )

    def _keep(
        self, vector_P: NDArray[np.float32], place: int | None, folded: list[int] | tuple[()]
    ) -> None:
        if place is not None:
            self._vectors_VP[place] = vector_P
            self._found_V[place] = True
            self._lowercased_V[place] = False
        for other in folded:
            if not self._found_V[other] and not self._lowercased_V[other]:
                self._vectors_VP[other] = vector_P
                self._lowercased_V[other] = True

    def _fail(self, where: str, num_rows: int, examples: list[bytes]) -> None:
        ours = list(self._ids)[-_EXAMPLES:]
        raise ModelFileError(
            f"{where}: none of its {num_rows} words is among the {len(self._ids)} of the "
            f"vocabulary; it begins with {', '.join(map(shown, examples))}, the vocabulary ends "
            f"with {', '.join(map(shown, ours))}: are language, case and tokeniser the same?"
        )


def _is_utf8(word: bytes) -> bool:
    if word.isascii():
        return True
    try:
        word.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
