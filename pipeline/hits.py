"""What a search finds, and the piece of text that shows it. Knows no index, encoder or file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

EXCERPT_CHARACTERS = 100
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Hit:
    """One row found: cosine similarity, id, the other columns, and a piece of its text if kept."""

    score: float
    id: str
    columns: dict[str, Any]
    excerpt: str


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT_CHARACTERS else flat[: EXCERPT_CHARACTERS - 3] + "..."


def around(text: str, start: int, end: int) -> str:
    """The passage from `start` to `end` in the middle of about EXCERPT_CHARACTERS characters."""
    margin = max(0, (EXCERPT_CHARACTERS - (end - start)) // 2)
    first, last = max(0, start - margin), min(len(text), end + margin)
    piece = " ".join(text[first:last].split())
    return ("..." if first else "") + piece + ("..." if last < len(text) else "")


def matrix_of(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """A column of vectors as (N, D) float32, a copy that may be written to."""
    matrix: NDArray[np.float32] = stored_matrix(column).astype(np.float32)
    return matrix


def stored_matrix(column: pa.FixedSizeListArray) -> NDArray[np.floating]:
    """A column of vectors as (N, D) of its own element type, in the column's memory."""
    flat: NDArray[np.floating] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors (..., D) scaled to length 1; one of zeros stays as it is."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: NDArray[np.floating] = vectors / np.maximum(norms, 1e-12)
    return result


def scale_to_unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1 in their own memory; those of zeros stay as they are.

    Returns: the lengths (N,) that they had.
    """
    norms_N = np.empty(len(vectors_ND), np.float32)
    # A piece stays in the processor's cache from the first pass over it to the second.
    step = max(1, _PIECE_BYTES // (4 * max(1, vectors_ND.shape[1])))
    for first in range(0, len(vectors_ND), step):
        piece_ND = vectors_ND[first : first + step]
        piece_N = np.sqrt(np.einsum("nd,nd->n", piece_ND, piece_ND))
        piece_ND /= np.maximum(piece_N, 1e-12)[:, None]
        norms_N[first : first + step] = piece_N
    return norms_N
