"""What goes into a vector model and what comes out. Knows arrays only: no torch, files or Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# Codes of rejected rows.
PROCESS_DIED = "process_died"
OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True)
class TokenWindow:
    """Tokenised documents as ids into their distinct words.

    `word_ids` (num_tokens,) int32 runs over all sentences of all documents in order;
    `sentence_lengths` (S,) and `sentences_per_document` (N,) are int64 and cut it up.
    """

    words: list[str]
    word_ids: NDArray[np.int32]
    sentence_lengths: NDArray[np.int64]
    sentences_per_document: NDArray[np.int64]


@dataclass
class BatchCounts:
    """Real tokens that went through the biLM, and all positions it worked on, marks included.

    `made_words` counts words whose characters were run; the vectors of all others were remembered.

    `num_oom_splits` counts batches that did not fit into memory and were halved; `safe_tokens` is
    the budget of padded tokens that this led to, None as long as all of them fitted.
    """

    num_batches: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    made_words: int = 0
    num_oom_splits: int = 0
    safe_tokens: int | None = None

    def since(self, before: BatchCounts) -> BatchCounts:
        """What was added after the copy `before` was made; `safe_tokens` if it was lowered."""
        return BatchCounts(
            num_batches=self.num_batches - before.num_batches,
            real_tokens=self.real_tokens - before.real_tokens,
            padded_tokens=self.padded_tokens - before.padded_tokens,
            made_words=self.made_words - before.made_words,
            num_oom_splits=self.num_oom_splits - before.num_oom_splits,
            safe_tokens=self.safe_tokens,
        )

    def add(self, other: BatchCounts) -> None:
        """Add what another process has counted."""
        self.num_batches += other.num_batches
        self.real_tokens += other.real_tokens
        self.padded_tokens += other.padded_tokens
        self.made_words += other.made_words
        self.num_oom_splits += other.num_oom_splits
        self.safe_tokens = least(self.safe_tokens, other.safe_tokens)


class WindowError(Exception):
    """A window cannot be embedded because of what it holds; a smaller one may be.

    A document that fails alone is rejected with this `code`.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep the reason code of the rejected row beside its message."""
        super().__init__(message)
        self.code = code


def least(one: int | None, other: int | None) -> int | None:
    """The smaller of two numbers; None where both are None."""
    return min((value for value in (one, other) if value is not None), default=None)


class VectorModel(Protocol):
    """What turns windows into vectors: the biLM, or a stand-in that measures the pipeline."""

    dim: int
    vector_columns: tuple[str, ...]
    counts: BatchCounts

    def vectors(self, window: TokenWindow) -> NDArray[np.floating]:
        """Vectors (rows, K, dim) of the window's documents, sentences or tokens, in order."""
        ...


@runtime_checkable
class StartingModel(Protocol):
    """A vector model on a device that works by itself, while the host prepares the next window."""

    # How many windows may be started before the first one's vectors are asked for.
    windows_ahead: int

    def start(self, window: TokenWindow) -> Callable[[], NDArray[np.floating]]:
        """Queue a window's work; what is returned waits for it and gives the vectors."""
        ...
