"""Whatever gives vectors to a task: the protocol, and the baselines that read no model.

N documents, M tokens, D width. Matrices are dense float32 or scipy's CSR. scikit-learn (extra
`evaluation`) is imported only when a baseline runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.documents import Document, flat_tokens
from pipeline.evaluation.scores import Group
from pipeline.projection import Projection

BASELINES = ("BM25", "TF-IDF", "one-hot", "spelling", "random vectors")
"""Names of the lines that read no model; BM25 is retrieval's own."""
WHITE = ", white"
"""Behind the name of a line whose cosines are taken in a whitened space."""
Matrix = Any
"""NDArray[np.float32] (rows, D), or a scipy.sparse.csr_array of that shape."""


@dataclass(frozen=True)
class Vectors:
    """The vectors of one line of a table."""

    name: str
    group: Group
    matrix: Matrix


class System(Protocol):
    """A source of vectors; each call gives one or several lines of a table (a model's layers)."""

    def documents(self, documents: Sequence[Document], num_fitted: int) -> list[Vectors]:
        """One vector a document. What has to see the corpus first looks at the first few only."""
        ...

    def tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> list[Vectors]:
        """Vectors of tokens in their sentences; positions count all tokens of all documents."""
        ...

    def words(self, words: Sequence[str]) -> list[Vectors]:
        """Vectors of words without a sentence."""
        ...


class Lexical:
    """What counting gives: TF-IDF of a document, the word itself of a token, a word's spelling.

    Case is folded. A document's weights are scikit-learn's (smoothed idf, Euclidean length 1).
    """

    def documents(self, documents: Sequence[Document], num_fitted: int) -> list[Vectors]:
        """TF-IDF; idf of the first `num_fitted` documents."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer=_folded, dtype=np.float32)
        vectorizer.fit(documents[:num_fitted])
        return [Vectors("TF-IDF", "baseline", vectorizer.transform(documents))]

    def tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> list[Vectors]:
        """One-hot vectors of the words."""
        from sklearn.feature_extraction.text import CountVectorizer

        flat = [token for document in documents for token in flat_tokens(document)]
        chosen = [[flat[position].lower()] for position in positions_M.tolist()]
        counter = CountVectorizer(analyzer=list, dtype=np.float32)
        return [Vectors("one-hot", "baseline", counter.fit_transform(chosen))]

    def words(self, words: Sequence[str]) -> list[Vectors]:
        """TF-IDF of the character 2- to 4-grams: what spelling alone says."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32)
        return [Vectors("spelling", "baseline", vectorizer.fit_transform(words))]


class RandomWords:
    """A random vector for each word, drawn from its spelling's hash; a document is their mean."""

    def __init__(self, dim: int) -> None:
        """Vectors of this width."""
        self._dim = dim
        self._made: dict[str, NDArray[np.float32]] = {}

    def documents(self, documents: Sequence[Document], num_fitted: int) -> list[Vectors]:
        """Means of the words' vectors."""
        del num_fitted
        rows = [self._of(flat_tokens(document)).mean(axis=0) for document in documents]
        return [self._named(np.stack(rows))]

    def tokens(
        self, documents: Sequence[Document], positions_M: NDArray[np.int64]
    ) -> list[Vectors]:
        """The words' vectors, whatever stands around them."""
        flat = [token for document in documents for token in flat_tokens(document)]
        return [self._named(self._of([flat[position] for position in positions_M.tolist()]))]

    def words(self, words: Sequence[str]) -> list[Vectors]:
        """The words' vectors."""
        return [self._named(self._of(words))]

    def _named(self, matrix: NDArray[np.float32]) -> Vectors:
        return Vectors("random vectors", "baseline", matrix)

    def _of(self, words: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(word) for word in words])

    def _vector(self, word: str) -> NDArray[np.float32]:
        if word not in self._made:
            digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            self._made[word] = random.standard_normal(self._dim, np.float32)
        return self._made[word]


def centered_unit(matrix: Matrix, num_fitted: int | None = None) -> Matrix:
    """Rows of Euclidean length 1; dense ones less their mean first.

    The vectors of a language model share a large common part that hides differences (Mu and
    Viswanath 2018, section 2). Counts stay as they are: their zeros mean something.

    Args:
        matrix: dense or sparse, a row an item.
        num_fitted: rows that the mean is taken of, all by default.
    """
    if not isinstance(matrix, np.ndarray):
        from sklearn.preprocessing import normalize

        return normalize(matrix)
    centered = matrix - matrix[:num_fitted].mean(axis=0)
    norms = np.linalg.norm(centered, axis=1, keepdims=True)
    return centered / np.maximum(norms, 1e-12)


def with_white(lines: Sequence[Vectors], num_fitted: int) -> list[Vectors]:
    """These lines, each dense one but those of a single layer also as `elmo search` compares rows.

    Args:
        lines: of one system.
        num_fitted: rows that the directions are taken of; where they are too few, nothing is added.
    """
    found: list[Vectors] = []
    for line in lines:
        found.append(line)
        if line.group != "layer" and isinstance(line.matrix, np.ndarray):
            dim = line.matrix.shape[1]
            projection = Projection.fit([line.matrix[:num_fitted]], dim, "white")
            if projection.scale_DD is not None:
                white = projection.apply(line.matrix)
                found.append(Vectors(f"{line.name}{WHITE}", line.group, white))
    return found


def white_note(lines: Sequence[Vectors]) -> str:
    """What is to be said of whitened lines; empty where there are none."""
    has_white = any(line.name.endswith(WHITE) for line in lines)
    return "; white: as 'elmo search' compares rows by default" if has_white else ""


def pair_cosines(matrix: Matrix) -> NDArray[np.float64]:
    """Cosine of row i and row i + N, for 2 N rows of `centered_unit`."""
    half = matrix.shape[0] // 2
    if isinstance(matrix, np.ndarray):
        cosines: NDArray[np.float64] = np.einsum(
            "nd,nd->n", matrix[:half], matrix[half:], dtype=np.float64
        )
        return cosines
    return np.asarray(matrix[:half].multiply(matrix[half:]).sum(axis=1), np.float64).ravel()


def _folded(document: Document) -> list[str]:
    return [token.lower() for token in flat_tokens(document)]
