"""Group sentences into batches of similar length. Knows lengths only: no text, tensors or files.

A batch is padded to its longest sentence, so what counts is padded tokens: the number of sentences
times the longest of them, sentence marks included. Sorting by length inside a window keeps the
padding small; the window bounds memory and keeps a document's sentences near each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

SENTENCE_MARKS = 2
# Kernels fill up the rows of a step to such a number, so batches had better have it.
ROWS_MULTIPLE = 32


def windows(tokens_per_document: NDArray[np.int64], window_tokens: int) -> Iterator[slice]:
    """Cut a sequence of documents into runs of whole documents of about `window_tokens` tokens.

    Args:
        tokens_per_document: (num_documents,) token counts.
        window_tokens: a window is closed before the document that would take it over this; a
            larger document is a window of its own.

    Yields: slices over documents, in order, covering each document once.
    """
    first, tokens = 0, 0
    for index, count in enumerate(tokens_per_document.tolist()):
        if index > first and tokens + count > window_tokens:
            yield slice(first, index)
            first, tokens = index, 0
        tokens += count
    if first < len(tokens_per_document):
        yield slice(first, len(tokens_per_document))


def batches(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Split sentences into length-sorted batches of at most `max_tokens` padded tokens.

    Args:
        lengths: (num_sentences,) tokens of each sentence, marks not included.
        max_tokens: bound of rows * (longest + SENTENCE_MARKS).

    Yields: index arrays into `lengths`, longest batch first, covering each sentence once. Ties
        keep their order, so equal input gives equal batches.

    Raises:
        ConfigError: one sentence alone exceeds `max_tokens`.
    """
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        padded_length = int(lengths[order[first]]) + SENTENCE_MARKS
        num_rows = max_tokens // padded_length
        if num_rows == 0:
            raise ConfigError(
                f"batch.max_tokens is {max_tokens}, but one sentence has {padded_length} tokens "
                "with its marks: raise batch.max_tokens or lower text.max_sentence_tokens"
            )
        if num_rows >= 2 * ROWS_MULTIPLE:
            num_rows -= num_rows % ROWS_MULTIPLE
        yield order[first : first + num_rows]
        first += num_rows
